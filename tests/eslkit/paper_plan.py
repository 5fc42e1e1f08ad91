"""The paper's schedule for TSDN, written by hand (block reading, LSL reading A), for pictures."""

from __future__ import annotations

from collections.abc import Sequence

from eslkit.plan import LayerInfo, Plan, Step

STEPS = (
    ("EL", "expand", (32, 64, 128, 256, 512), (32, 64, 128, 256), 15_520_968, 193.542, 0),
    ("CSL1", "channels", (32, 64, 128, 256, 256), (32, 64, 128, 128), 9_424_840, 177.436, 2),
    ("CSL2", "channels", (32, 64, 128, 128, 256), (32, 64, 64, 128), 5_245_768, 143.210, 4),
    ("CSL3", "channels", (32, 64, 64, 128, 256), (32, 32, 64, 128), 4_200_712, 108.985, 4),
    ("CSL4", "channels", (32, 32, 64, 128, 256), (16, 32, 64, 128), 3_939_304, 74.759, 4),
    ("CSL5", "channels", (16, 32, 64, 128, 256), (16, 32, 64, 128), 3_882_600, 48.721, 4),
)


def stage_layers(
    stage: str, widths: Sequence[int], ups: Sequence[int], *, without: Sequence[str] = ()
) -> list[LayerInfo]:
    """One stage: two convolutions a level down, the middle, up-sampling and two a level up."""
    layers: list[LayerInfo] = []

    def add(name: str, kind: str, level: int, width: int) -> None:
        if name not in without:
            full = f"{stage}.{name}" if stage else name
            info = {"name": full, "kind": kind, "level": level, "width": width, "stage": stage}
            layers.append(LayerInfo.model_validate(info))

    for level, width in enumerate(widths):
        for number in (1, 2):
            add(f"down{level}.{number}", "conv", level, width)
    for level in range(len(widths) - 2, -1, -1):
        add(f"up{level}", "up", level, ups[level])
        for number in (1, 2):
            add(f"back{level}.{number}", "conv", level, widths[level])
    add("out", "conv", 0, 4)
    return layers


def paper_plan(stages: Sequence[str] = ("denoise", "refine")) -> Plan:
    """EL, five channel steps, two layer steps, with every width of the paper's TSDN."""
    lsl1 = ("down4.1", "down4.2", "up3")
    lsl2 = (*lsl1, "down3.2", "back3.1")
    rows = [(*row, ()) for row in STEPS]
    tail = STEPS[-1][2:4]
    rows.append(("LSL1", "layers", *tail, 1_554_792, 42.144, 2, lsl1))
    rows.append(("LSL2", "layers", *tail, 964_456, 37.313, 2, lsl2))
    steps = []
    for index, (name, phase, widths, ups, parameters, gflops, layers, without) in enumerate(
        rows, 1
    ):
        picture = [
            layer for stage in stages for layer in stage_layers(stage, widths, ups, without=without)
        ]
        fields = {
            "index": index,
            "name": name,
            "phase": phase,
            "width": 2.0 if phase == "expand" else None,
            "depth": 1 if phase == "expand" else 0,
            "removed": without if phase == "layers" else (),
            "layers": layers * len(stages),
            "init": "random" if phase == "expand" else "first",
            "parameters": parameters,
            "macs": int(gflops * 5e8),
            "picture": tuple(picture),
            "seed": index,
        }
        steps.append(Step.model_validate(fields))
    return Plan(
        model="eslkit_tsdn.models.tsdn.TSDN",
        width=2.0,
        depth=1,
        init="first",
        granularity="fine",
        expand_init="random",
        inputs=((1, 4, 512, 512),),
        fingerprint="0" * 64,
        base_parameters=964_456,
        base_macs=int(37.313 * 5e8),
        steps=tuple(steps),
    )
