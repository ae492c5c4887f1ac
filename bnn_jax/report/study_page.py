"""The page of a study in Markdown: its text, the table of all runs, what goes beyond scores, the commands."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LOWER = ("nll", "ece", "ece_classwise", "brier", "aurc", "rmse", "mae", "interval_width_95")
BETTER = dict.fromkeys(LOWER, "↓") | dict.fromkeys(
    (
        "seconds",
        "rhat_function_median",
        "temperature",
        "threshold",
        "coverage_50",
        "coverage_90",
        "coverage_95",
    ),
    "",
)
TITLES = {
    "nll": "NLL, nats",
    "ece": "ECE",
    "brier": "Brier",
    "rmse": "RMSE",
    "auroc": "AUROC",
    "aurc": "AURC",
    "rhat_function_median": "R-hat",
}


def markdown(
    study: Any, record: Mapping[str, Any], sections: Sequence[str] = (), missing: Sequence[str] = ()
) -> str:
    """The page.

    Args:
        study: `study.Study`.
        record: its results.
        sections: lines for what goes beyond the table.
        missing: labels that the results do not hold.
    """
    title, _, text = study.text.strip().partition("\n")
    all_runs = [run for entry in record["methods"].values() for run in entry["runs"]]
    several = len(all_runs) > len(record["methods"])
    intervals = ", or ".join(dict.fromkeys(run["interval"] for run in all_runs))
    meaning = "mean ± standard error over folds or seeds" if several else intervals
    counts = "{num_train:,} training, {num_val:,} validation and {num_test:,} test examples"
    sizes = dict.fromkeys(counts.format(**run["data"]) for run in all_runs)
    num_draws = max(run["num_draws"] for run in all_runs)
    lines = [
        f"# {title.rstrip('.')}",
        "",
        text.strip(),
        "",
        *table(rows(study, record)),
        "",
        f"Ours in bold; in brackets or after ±: {meaning}. {', or '.join(sizes)}; predictions average "
        f"{num_draws} posterior draws, or all that a method has. Seconds: wall time of training beside other "
        f"work on {places(run['environment'] for run in all_runs)}.",
        "",
        *([f"Not run yet: {'; '.join(missing)}.", ""] if missing else []),
        *(referral(record) if study.referral else []),
        *sections,
        f"Everything on this page by `{study.command}`; single runs by",
        "",
        "```text",
        *(entry["command"] for entry in record["methods"].values()),
        "```",
        "",
    ]
    return "\n".join(lines)


def places(environments: Iterable[Mapping[str, Any]]) -> str:
    """Where something ran: every machine and the commits there."""
    commits: dict[str, dict[str, None]] = {}
    for environment in environments:
        plural = "" if environment["num_cores"] == 1 else "s"
        told = "{num_cores} core{plural} ({platform}), Python {python}, jax {jax}"
        there = commits.setdefault(told.format(plural=plural, **environment), {})
        there[environment["git_commit"]] = None
    return "; ".join(f"{told}, commit {', '.join(there)}" for told, there in commits.items())


def overview(studies: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[str]:
    """Lines of the table of many studies.

    Args:
        studies: `study.Study` and its results; pages lie in docs/studies.
    """
    found = [["study", "of", "network", "VI", "another posterior", "others report"]]
    for study, record in studies:
        shown = study.overview
        name, label = shown.other or ("", None)
        scored = [
            cell(record["methods"].get(of, {"runs": ()})["runs"], shown.score)
            for of in (shown.network, shown.vi, label)
        ]
        published = study.published.get(shown.published, {}).get(shown.score, "-")
        found.append(
            [
                f"[{study.name}](docs/studies/{study.name}.md)",
                f"{shown.data}, {heading(shown.score)}",
                *scored[:2],
                f"{name} {scored[2]}".strip(),
                str(published),
            ]
        )
    return table(found)


def heading(column: str) -> str:
    """The title of a score, with the direction that is better."""
    return f"{TITLES.get(column, column.replace('_', ' '))} {BETTER.get(column, '↑')}".strip()


def rows(study: Any, record: Mapping[str, Any]) -> list[list[str]]:
    """The table: what others report, then ours."""
    found = [["", *map(heading, study.columns)]]
    for label, published in study.published.items():
        found.append([label, *(str(published.get(c, "-")) for c in study.columns)])
    for label, entry in record["methods"].items():
        found.append([f"**{label}**", *(cell(entry["runs"], c) for c in study.columns)])
    return found


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the head first, as lines of Markdown; numbers to the right."""
    head, *body = rows
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, ruler, *body)]


def referral(record: Mapping[str, Any]) -> list[str]:
    """Lines with accuracy and recall of the rest when the most uncertain share goes to a doctor."""
    shares = [row["referred"] for row in next(iter(record["methods"].values()))["runs"][0]["referral"]]
    found = [["", *(f"{share:.0%}" for share in shares)]]
    for label, entry in record["methods"].items():
        by_share = zip(*(run["referral"] for run in entry["runs"]), strict=True)
        found.append([label, *(", ".join(_mean(r, n) for n in ("accuracy", "recall")) for r in by_share)])
    return [
        "## When the most uncertain images go to a doctor",
        "",
        "Accuracy and recall of the images that are still answered, by the share that is referred.",
        "",
        *table(found),
        "",
    ]


def cell(records: Sequence[Mapping[str, Any]], column: str) -> str:
    """A score: of one run with its interval, of several as mean ± standard error."""
    records = [record for record in records if column in record]
    if not records:
        return "-"
    values = [record[column] for record in records]
    digits = 0 if column == "seconds" else 3
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        digits += 0 < error < 0.0005 and digits > 0  # or the error would read 0
        return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
    interval = records[0].get(f"{column}_interval")
    ends = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{values[0]:.{digits}f}{ends}"


def _mean(records, name):
    """The mean of what may be undefined, as recall is without examples of class 1."""
    values = [record[name] for record in records if name in record]
    return f"{np.mean(values):.3f}" if values else "-"
