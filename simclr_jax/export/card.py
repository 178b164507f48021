"""The README.md beside exported weights: what they are, how to open them, what they were measured to do."""
import json

from simclr_jax.export import found, texts


def text(model, target: str, *, weights: str, lines=(), call=(), differences=()) -> str:
    """Markdown.

    Args:
      target: what opens it. weights: the file's name.
      lines: Python that opens the directory. call: Python that runs it, as in `found.Package`.
      differences: of `check.differences`.
    """
    meta, parts = model.meta, [_head(model, target, weights)]
    if lines:
        opened = [line.replace("{dir}", "DIR") for line in lines]
        parts.append(["## Open", "", "```python", *opened, "```"])
    if call:
        given = [text for key, text in (("image", "`pixels`, f32[b,3,H,W], prepared as below"),
                                        ("text", "`tokens`, i64[b,L]")) if f'"{key}"' in "".join(call)]
        parts.append([f"Of {' and '.join(given)}:", "", "```python", *call, "```"])
    if model.image:
        side = found.side(model.image)
        parts.append(["## Pictures", "", f"Pixels in [0, 1], {side} x {side}, prepared by:", "",
                      "```json", json.dumps(model.image["eval"]), "```"])
    if "text" in model.nets:
        parts.append(["## Texts", "", *texts.lines(model.nets["text"], model.text, model.tokenizer,
                                                  transformers=target == "transformers")])
    if differences:
        parts.append(["## Checked", "",
                      "Random inputs through this and the net it was written from; largest absolute difference:", "",
                      "| layer | difference | values up to |", "|---|---|---|",
                      *(f"| {d.role}/{d.layer} | {d.largest:.1e} | {d.scale:.1e} |" for d in differences)])
    if meta.get("evals"):
        parts.append(["## Evaluations", "", "```json", *map(json.dumps, meta["evals"]), "```"])
    if "config" in meta:
        parts.append(["## Config", "", "```json", json.dumps(meta["config"], indent=1, sort_keys=True), "```"])
    return "\n".join(line for part in parts for line in (*part, ""))


def _head(model, target, weights):
    meta = model.meta
    source = meta.get("source", "another library")
    nets = ", ".join(f"{role} {_net(net)}" for role, net in model.nets.items())
    if "method" in meta:
        whose = ", the teacher's weights" if meta.get("teacher") else ""
        came = f"Pretrained by {meta['method']} with simclr_jax, step {meta['step']}{whose}."
    else:
        came = f"Weights of {source}, as simclr_jax read them."
    return [f"# {meta.get('method', source)}: {nets}", "", came, "",
            f"- Licence of the weights: {meta.get('licence') or 'not stated; say it before you pass them on'}",
            f"- For: {target}", f"- Files: {weights}, config.json"]


def _net(net) -> str:
    told = ", ".join(f"{key}={net[key]}" for key in ("depth", "size", "width", "patch") if net.get(key))
    return f"{net['name']}({told})"
