"""A training as the tab shows it: HTML with the curve of its losses, for any version of the page's own library."""

import base64
import html
import io

from PIL import Image

from sara_core.foreign_text import plain

from ..training.progress import Progress

WIDTH, HEIGHT, MARGIN = 640, 200, 8
LINE = 22  # above and below the curve, for what is written there
# As the mean of so many steps, beside the losses themselves, which jump with the noise that is drawn.
SMOOTHED = 20


def sentence(text: str, is_error: bool = False) -> str:
    """Something that is said, as HTML."""
    kind = "error" if is_error else "sara-said"
    return f"<div class='{kind}' role='status'>{html.escape(plain(text))}</div>"


def report(text: str, picture: Image.Image | None = None) -> str:
    """A report of several lines as HTML, below its picture; with one it has a table, whose rows stay whole."""
    if picture is None:
        return f"<pre class='sara-report' style='white-space: pre-wrap'>{html.escape(text)}</pre>"
    drawn = f"<img alt='The report as a picture' style='max-width: 100%' src='{_url(picture)}'>"
    return f"{drawn}<pre class='sara-report' style='overflow-x: auto'>{html.escape(text)}</pre>"


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def progress_view(progress: Progress) -> str:
    """Everything of a training but its pictures."""
    share = progress.step / max(1, progress.steps)
    parts = [
        sentence(f"{progress.name}: {progress.message}", is_error=progress.phase == "failed"),
        f"<progress value='{share:.4f}' max='1' style='width: 100%'></progress>",
        sentence(progress.line()) if progress.line() else "",
        sentence(f"This training takes {progress.estimate}.") if progress.estimate and not progress.is_over else "",
        curve(progress.points(), progress.steps),
        *map(sentence, progress.warnings.values()),
    ]
    # What ended a training early says it by itself.
    said = " ".join([progress.message, *progress.warnings.values()])
    if progress.is_over and progress.snapshot is not None and progress.snapshot not in said:
        parts.append(sentence(f"To go on with it, choose {progress.snapshot} under Resume."))
    return "\n".join(filter(None, parts))


def curve(points: list[list], steps: int) -> str:
    """Losses over the steps of a run as a drawing; empty for fewer than two. points: [step, loss]"""
    if len(points) < 2:
        return ""
    losses = [loss for _, loss in points]
    low, high = min(losses), max(losses)
    if low == high:
        high = low + 1

    def path(values: list[float]) -> str:
        places = (
            f"{MARGIN + (WIDTH - 2 * MARGIN) * step / max(1, steps):.1f},"
            f"{LINE + (HEIGHT - 2 * LINE) * (high - value) / (high - low):.1f}"
            for (step, _), value in zip(points, values)
        )
        return " ".join(places)

    lines = f"<polyline points='{path(losses)}' stroke-opacity='0.35'/>"
    lines += f"<polyline points='{path(_smoothed(losses))}' stroke-width='2'/>"
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='Loss, step by step' "
        f"style='width: 100%; background: rgba(128,128,128,.1)' fill='none' stroke='currentColor'>{lines}"
        "<g fill='currentColor' stroke='none' font-size='12'>"
        f"<text x='{WIDTH - MARGIN}' y='16' text-anchor='end'>loss {high:.4f}</text>"
        f"<text x='{MARGIN}' y='{HEIGHT - MARGIN}'>{low:.4f}</text>"
        f"<text x='{WIDTH - MARGIN}' y='{HEIGHT - MARGIN}' text-anchor='end'>step {steps}</text></g></svg>"
    )


def _smoothed(losses: list[float]) -> list[float]:
    return [
        sum(part) / len(part) for part in (losses[max(0, at - SMOOTHED + 1) : at + 1] for at in range(len(losses)))
    ]
