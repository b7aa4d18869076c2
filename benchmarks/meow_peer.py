"""The other side of the MEOW benchmark: the specification's epoch in dense PyTorch, with faiss for k-means.

Started by `benchmarks.meow` with a Python that has torch and faiss-cpu. Written from the specification, not from the
original code: every matrix dense, the (N, N) tensors of the loss formed one after the other, k-means on the CPU at
every epoch, Adam. Requests, one JSON line each: {"op": "epoch"} → seconds of the wall and of the processor, loss;
{"op": "encode"} → the projected views without dropout, into a file.
"""

import json
import math
import sys
import time

import faiss
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, TAU, DROPOUT, CLUSTERS, RATE = 64, 0.4, 0.2, (100, 300), 7e-4


class Encoder(nn.Module):
    """Two graph convolutions and a norm over the whole matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.second = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.act = nn.PReLU()
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x, adjacency):
        hidden = self.act(adjacency @ self.drop(x @ self.first))
        out = adjacency @ self.drop(hidden @ self.second)
        return F.layer_norm(out, out.shape)


class Meow(nn.Module):
    """ACM's layout: one context type on each of two paths."""

    def __init__(self, sizes):
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(size, WIDTH) for size in sizes)
        self.context = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in sizes[1:])
        self.encoder = Encoder()
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.query = nn.Parameter(torch.empty(1, WIDTH))
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, data):
        plain, *others = (F.elu(self.drop(layer(x))) for layer, x in zip(self.enter, data["features"], strict=True))
        masked = F.elu(self.drop(self.enter[0](data["masked"])))
        views = []
        for i, (other, layer) in enumerate(zip(others, self.context, strict=True)):
            met = layer(data["incidence"][i] @ other / data["degree"][i])
            for h, adjacency in ((plain, data["adjacency"][i]), (masked, data["masked_adjacency"][i])):
                views.append(F.normalize(self.encoder(F.elu(h + self.drop(met)), adjacency)))
        query = self.drop(self.query)
        scores = torch.cat([query @ torch.tanh(self.attention(view)).mean(0) for view in views])
        fine = sum(weight * view for weight, view in zip(torch.softmax(scores, 0), views, strict=True))
        coarse = self.encoder(plain, data["coarse"])
        return [F.normalize(torch.tanh(self.projection(x))) for x in (coarse, fine)]


def kmeans(x, k, seed):
    """Assignments, unit centroids and densities."""
    found = faiss.Clustering(x.shape[1], k)
    found.niter, found.nredo, found.seed = 20, 5, seed
    found.max_points_per_centroid, found.min_points_per_centroid = 4000, 1
    index = faiss.IndexFlatIP(x.shape[1])
    found.train(x, index)
    product, own = (each[:, 0] for each in index.search(x, 1))
    size = np.bincount(own, minlength=k)
    spread = np.bincount(own, weights=np.sqrt(np.maximum(product, 0)), minlength=k) / np.maximum(size, 1)
    phi = np.where(size > 1, spread / np.log(size + 5), 0)
    phi = np.where(size > 1, phi, phi.max())
    phi = np.clip(phi, *np.percentile(phi, (10, 90)))
    centroids = torch.from_numpy(faiss.vector_float_to_array(found.centroids).reshape(k, -1))
    return torch.from_numpy(own), F.normalize(centroids), torch.from_numpy(TAU * phi / phi.mean()).float()


def loss_of(coarse, fine):
    """Weighted InfoNCE and the prototypes, as they are written down: every (N, N) matrix is there."""
    clusterings = [kmeans(fine.detach().numpy(), k, seed) for seed, k in enumerate(CLUSTERS)]
    similarity = torch.exp(coarse @ fine.T / TAU)
    weight = torch.full_like(similarity, len(clusterings))
    for own, _, _ in clusterings:
        weight -= (own[:, None] == own[None, :]).float()
    info = -torch.log(similarity.diagonal() / (similarity * weight).sum(1)).mean()
    proto = 0.0
    for own, centroids, density in clusterings:
        logits = torch.exp(coarse @ centroids.T / density)
        mine = logits.gather(1, own[:, None])[:, 0]
        proto = proto - torch.log(mine / (logits.sum(1) * len(fine) / len(centroids))).mean()
    return info + proto / len(clusterings)


def main() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}

    def listed(prefix):
        return [arrays[name] for name in sorted(arrays) if name.startswith(prefix) and name[len(prefix) :].isdigit()]

    data = {name: listed(name) for name in ("features", "incidence", "adjacency", "masked_adjacency")}
    data["degree"] = [each.sum(1, keepdim=True).clamp(min=1) for each in data["incidence"]]
    data |= {"masked": arrays["masked"], "coarse": sum(data["adjacency"]) / len(data["adjacency"])}
    model = Meow([x.shape[1] for x in data["features"]])
    model.load_state_dict({n.removeprefix("w/"): x for n, x in arrays.items() if n.startswith("w/")})
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    print(json.dumps({"torch": torch.__version__, "faiss": faiss.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        if request["op"] == "encode":
            model.eval()
            with torch.no_grad():
                coarse, fine = model(data)
            np.savez(request["path"], coarse=coarse.numpy(), fine=fine.numpy())
        else:
            model.train()
            wall, processor = time.perf_counter(), time.process_time()
            adam.zero_grad()
            loss = loss_of(*model(data))
            loss.backward()
            adam.step()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - processor, "loss": loss.item()}
            assert math.isfinite(answer["loss"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
