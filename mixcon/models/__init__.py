"""Towers and dual encoders: flax.nnx layers, used through the pure functions of `functional`."""

from mixcon.models.bert import bert
from mixcon.models.build import build
from mixcon.models.classifier import classifier
from mixcon.models.conv_net import conv_net
from mixcon.models.dual_encoder import dual_encoder
from mixcon.models.efficientnet import efficientnet
from mixcon.models.export import export_clip
from mixcon.models.functional import Model, count, flatten, functional, map_with_path, path_names, unflatten
from mixcon.models.fusion import fusion_encoder
from mixcon.models.heads import LogitScale, Prototypes, clamp_logit_scale, l2_normalize, mlp_head, read_logit_scale
from mixcon.models.modified_resnet import modified_resnet
from mixcon.models.multimodal import multimodal_classifier
from mixcon.models.multiview import multiview_tower
from mixcon.models.parts import complete, select
from mixcon.models.pretrained import load_clip, load_towers
from mixcon.models.pretrained_towers import load_bert, load_vit
from mixcon.models.projected import projected, relu_mlp
from mixcon.models.regressors import lstnet, mlp
from mixcon.models.resnet import resnet
from mixcon.models.speech import speech_transformer
from mixcon.models.text import text_transformer
from mixcon.models.vit import sincos_2d, vit
from mixcon.models.weights import Pretrained, stack_blocks

__all__ = [
    "LogitScale",
    "Model",
    "Pretrained",
    "Prototypes",
    "bert",
    "build",
    "clamp_logit_scale",
    "classifier",
    "complete",
    "conv_net",
    "count",
    "dual_encoder",
    "efficientnet",
    "export_clip",
    "flatten",
    "functional",
    "fusion_encoder",
    "l2_normalize",
    "load_bert",
    "load_clip",
    "load_towers",
    "load_vit",
    "lstnet",
    "map_with_path",
    "mlp",
    "mlp_head",
    "modified_resnet",
    "multimodal_classifier",
    "multiview_tower",
    "path_names",
    "projected",
    "read_logit_scale",
    "relu_mlp",
    "resnet",
    "select",
    "sincos_2d",
    "speech_transformer",
    "stack_blocks",
    "text_transformer",
    "unflatten",
    "vit",
]
