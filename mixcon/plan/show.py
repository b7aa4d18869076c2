"""Plans as text, as a table over topologies and batch sizes, and as a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from mixcon.plan.compile import Plan
from mixcon.reproduce.document import aligned

GIB = 2**30
NAMES = {
    "compute": "all FLOPs at the peak",
    "memory": "state and temporaries, read and written once",
    "network": "all collectives at the links' rate, nothing hidden",
    "compiler": "the compiler's own estimate",
}


def text(plan: Plan) -> str:
    """One plan in words and numbers.

    Example:
      >>> print(text(plan(config, topology)))
    """
    axes = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lines = [
        f"{plan.config} on {plan.topology}: {plan.chips} × {plan.chip}, mesh {axes}",
        f"batch {plan.batch_size:,}, {plan.batch_size // plan.mesh['data']:,} on each share of the data axis",
        f"compiled in {plan.compile_seconds:.0f} s; nothing was run, and no figure below was measured",
    ]
    if plan.stand_ins:
        lines.append(f"replaced for this: {plan.stand_ins}")
    lines += ["", f"{'memory of one chip':<44}{'GiB':>9}"]
    parts = (
        ("parameters", plan.params),
        ("optimiser", plan.optimizer),
        ("average, objective and layer state", plan.other_state),
        ("batch", plan.batch),
        ("activations", plan.activations),
        ("gradients, workspace", plan.temporaries - (plan.activations or 0.0)),
    )
    lines += [f"  {name:<42}{size / GIB:9.2f}" for name, size in parts if size is not None]
    lines.append(f"  {'in all':<42}{plan.total / GIB:9.2f}{verdict(plan)}")
    lines += ["", "work of one step", f"  {plan.flops:.3g} FLOPs over all chips, recomputation included"]
    for kind, moved in sorted(plan.collectives.items()):
        lines.append(f"  {kind:<20}{moved['count']:6.0f} times {moved['bytes'] / 2**20:12,.1f} MiB a chip")
    if plan.seconds:
        lines += ["", f"{'predicted time of one step, by bound':<56}{'s':>9}"]
        lines += [f"  {NAMES[name]:<54}{value:9.3f}" for name, value in plan.seconds.items()]
        if plan.utilization is not None:
            slowest = max(plan.seconds.values())
            lines.append(f"  at the slowest: {plan.batch_size / slowest:,.0f} examples/s, ")
            lines[-1] += f"{100 * plan.utilization:.0f} % of the chips' peak (FLOPs done, recomputation too)"
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """Whether it fits, as the end of a line."""
    if plan.memory is None:
        return ""
    return f" of {plan.memory / GIB:.2f}: {'fits' if plan.fits else 'DOES NOT FIT'}"


def table(plans: Sequence[Plan]) -> str:
    """A row for each plan, in Markdown."""
    rows = [["config", "topology", "batch", "GiB a chip", "fits", "FLOPs a step", "collectives, MiB a chip", "s a step", "of peak"]]  # fmt: skip  # noqa: E501
    for plan in plans:
        slowest = max(plan.seconds.values(), default=None)
        moved = sum(kind["bytes"] for kind in plan.collectives.values()) / 2**20
        needed = f"{plan.total / GIB:.1f}" + (f" of {plan.memory / GIB:.1f}" if plan.memory else "")
        rows.append(
            [
                plan.config,
                plan.topology,
                f"{plan.batch_size:,}",
                needed,
                "yes" if plan.fits else "**no**",
                f"{plan.flops:.2e}",
                f"{moved:,.0f}" if plan.collectives else "",
                f"{slowest:.2f}" if slowest and plan.fits else "",
                f"{100 * plan.utilization:.0f} %" if plan.utilization and plan.fits else "",
            ]
        )
    return aligned(rows)


def plot(plans: Sequence[Plan], path: str | pathlib.Path) -> None:
    """Memory of a chip over the batch size, a panel for each config; dotted: what a chip has, hollow: does not fit."""
    import matplotlib.pyplot as plt

    from mixcon.report.style import styled

    names, machines = (list(dict.fromkeys(getattr(p, key) for p in plans)) for key in ("config", "topology"))
    with styled():
        figure, panels = plt.subplots(
            1, len(names), figsize=(2.2 + 2.4 * len(names), 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, name in zip(panels[0], names, strict=True):
            for number, machine in enumerate(machines):
                here = [p for p in plans if (p.config, p.topology) == (name, machine)]
                here.sort(key=lambda p: p.batch_size)
                color = f"C{number}"
                axes.plot([p.batch_size for p in here], [p.total / GIB for p in here], color=color, label=machine)
                for each in here:
                    axes.plot(each.batch_size, each.total / GIB, "o", color=color, mfc=color if each.fits else "white")
                for limit in {p.memory / GIB for p in here if p.memory}:
                    axes.axhline(limit, color=color, linewidth=1, linestyle=":")
            axes.set(title=name, xlabel="global batch", xscale="log", yscale="log")
            sizes = sorted({p.batch_size for p in plans if p.config == name})
            axes.set_xticks(sizes[:: max(1, len(sizes) // 3)], minor=False)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1024:g}k" if size >= 1024 else f"{size:g}")
            axes.yaxis.set_major_formatter(lambda gib, _: f"{gib:g}")
            axes.yaxis.set_minor_formatter(lambda gib, _: "")
        panels[0][0].set_ylabel("GiB of one chip")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(path)
        plt.close(figure)
