"""The README.md beside exported weights: what they are, how to open them, what they were measured to do."""
import json

from simclr_jax.export import found


def text(model, target: str, lines, differences=(), *, weights: str, licence: str = "") -> str:
    """Markdown.

    Args:
      lines: Python that opens the directory; differences: of `check.differences`; weights: the file's name.
      licence: of the weights; "" leaves it to be said.
    """
    meta = model.meta
    out = [f"# {meta.get('method') or meta.get('source', 'weights')}: " + ", ".join(f"{r} {_net(n)}" for r, n in model.nets.items()), ""]
    if "method" in meta:
        out += [f"Pretrained by {meta['method']} with simclr_jax, step {meta['step']}"
                + (", the teacher's weights" if meta.get("teacher") else "") + ".", ""]
    else:
        out += [f"Weights of {meta.get('source', 'another library')}, as simclr_jax read them.", ""]
    out += [f"- Licence of the weights: {licence or 'not stated; say it before you pass them on'}", f"- For: {target}",
            f"- Files: {weights}, config.json", ""]
    if lines:
        out += ["## Open", "", "```python", *lines, "```", ""]
    if model.image:
        out += ["## Pictures", "", f"Pixels in [0, 1], {found.side(model.image)} x {found.side(model.image)}, prepared by:", "",
                "```json", json.dumps(model.image["eval"]), "```", ""]
    if differences:
        out += ["## Checked", "", "Random pixels through this and the net it was written from; largest absolute difference:", "",
                "| layer | difference | values up to |", "|---|---|---|",
                *(f"| {d.role}/{d.layer} | {d.largest:.1e} | {d.scale:.1e} |" for d in differences), ""]
    if meta.get("evals"):
        out += ["## Evaluations", "", "```json", *(json.dumps(r) for r in meta["evals"]), "```", ""]
    if "config" in meta:
        out += ["## Config", "", "```json", json.dumps(meta["config"], indent=1, sort_keys=True), "```", ""]
    return "\n".join(out)


def _net(net) -> str:
    return f"{net['name']}(" + ", ".join(f"{k}={net[k]}" for k in ("depth", "size", "width", "patch") if net.get(k)) + ")"
