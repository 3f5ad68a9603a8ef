"""Figures of an experiment, as SVG; they need matplotlib (Debian: python3-matplotlib)."""
import statistics

# One colour and one dash each, so that lines can be told apart without colours, too.
STYLES = (("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", ":"), ("#cc79a7", "-."), ("#56b4e9", "-"))


def draw(path, title, x_label, y_label, series, x_ticks=None, y_limits=None):
    """`series`: {name: {x: values of the seeds}}. A line through the means, least to most shaded.
    Without matplotlib: False, and no file."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    # The same numbers give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": path.name, "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(5.6, 3.4), layout="constrained")
    for (name, points), (colour, dashes) in zip(series.items(), STYLES):
        xs = sorted(points)
        axes.plot(xs, [statistics.mean(points[x]) for x in xs], dashes, color=colour, label=name,
                  marker="o", markersize=3)
        axes.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs],
                          color=colour, alpha=0.15, linewidth=0)
    if x_ticks:
        axes.set_xscale("log", base=2)
        axes.set_xticks(x_ticks, [str(x) for x in x_ticks])
    if y_limits:
        axes.set_ylim(*y_limits)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
