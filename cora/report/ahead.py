"""Sections of the page on what a run expects: the forecast of clips, and what surprised it."""

from cora.report import figures
from cora.report.html import image, paragraph, percent, table
from cora.report.material import GUESSES, Material, Section


def forecast(material: Material) -> Section:
    """Returns how far ahead each level predicts, and pictures of what it expects beside what came."""
    title, shown = "What it expects", material.gallery.forecast
    if shown is None:
        return Section("forecast", title, '<p class="missing">Not measured of this step yet. Run <code>cora forecast'
                       "</code> on the run's folder with any corpus, and write the report again.</p>")
    found = shown.found
    body = paragraph(f"Each clip's first {found['seen']} time steps are seen and the rest is predicted, "
                     f"{found['frames_a_step']} frames a step. The table gives the share of the variance that is left "
                     f"by level, on {found['n_test']} clips, and the best guess without a network.", "lead")
    rows, horizons = [], found["by_horizon"]
    for ahead in range(len(horizons["left"][0])):
        guesses = {name: each[-1][ahead] for name, each in horizons["trivial"].items()}
        best = min(guesses, key=lambda name: guesses[name])
        rows.append([f"{ahead + 1} step{'s' * (ahead > 0)} ahead", *(percent(one[ahead]) for one in horizons["left"]),
                     f"{percent(guesses[best])} ({GUESSES[best]})"])
    levels = [f"level {i}" for i in range(len(horizons["left"]))]
    body += table(["Left", *levels, "Best guess leaves"], rows)
    body += paragraph("Latents are no pictures. To be seen, each predicted token is shown as the token of the training "
                      "clips that is nearest to it; the same for the targets themselves is the best that this can do. "
                      "The last row is what a linear map draws of the prediction, in grey. Look at where things are, "
                      "not at what they are painted with.", "lead")
    return Section("forecast", title, body + image(figures.png(shown.picture), "What came, and what was expected."))


def surprise(material: Material) -> Section | None:
    """Returns how often impossible events surprise more than possible ones, and the films that surprised most; None
    for a run that was not asked."""
    shown = material.gallery.surprise
    if shown is None:
        return None
    found = shown.found
    body = paragraph("At every time step the next tokens are predicted from those before them. Energy says how "
                     "improbable they were, misfit how far from the expected the error was, either way, error how "
                     "large it was. Motion is the control: the error of a prediction that knows nothing of the past.",
                     "lead")
    if "pairs" in found:
        body += paragraph("Of pairs of clips that are equal until something possible or impossible happens, the share "
                          "in which the impossible one surprises more, level by level. Guessing gives 50%; a score "
                          "that says no more than motion, or than one less motion, tells nothing of what was possible.")
        rows = [[f"{of}, {kind} ({one['pairs']} pairs)", *(f"{x:.0%}" for x in one["accuracy"])]
                for of, kinds in found["pairs"].items() for kind, one in kinds.items()]
        body += table(["", *(f"level {i}" for i in range(len(rows[0]) - 1))], rows)
    body += image(figures.png(shown.picture), f"Films that surprise most, by {found['score']} at level "
                                              f"{found['level']}, and where they do.")
    return Section("surprise", "What surprises it", body)
