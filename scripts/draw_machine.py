"""The picture ``docs/machine.svg``: slices, queues, streams and memories of one machine.

Sizes come from `arch.config`, so that the picture cannot disagree with them. Colours are readable
on white and on black pages, because every shape brings its own ground.
"""
from arch.config import profile
from arch.isa import UNITS, word_bits
from arch.queues import QUEUES
from arch.timing import timing

SHOWN = "ecp5_85k"
WIDTH, HEIGHT = 1000, 640
FONT = "font-family=\"system-ui, sans-serif\""
_QUEUE, _SLICE, _SRAM, _HOST = "#fff3d6", "#dcebfb", "#e0f3e2", "#efe6f7"
_LINE, _TEXT, _QUIET = "#3c4650", "#1c2228", "#5a6570"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Drawing:
    """Collects shapes.

    Parameters
    ----------
    width, height : int
    label : str
        What the picture shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, label: str):
        self.width, self.height, self.label, self.parts = width, height, label, []

    def bar(self, x, y, width, height, fill, title=""):
        """A plain rectangle; a title shows when it is pointed at."""
        inside = f"><title>{_escape(title)}</title></rect>" if title else "/>"
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                          f'height="{height:.1f}" fill="{fill}"{inside}')

    def box(self, x, y, width, height, fill, lines, dashed=False):
        """A rectangle; the first line is its title."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" '
                          f'fill="{fill}" stroke="{_LINE}" stroke-width="1.4"{dash}/>')
        top = y + height / 2 - (len(lines) - 1) * 8 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 16 * number, line, number == 0,
                      _TEXT if number == 0 else _QUIET, size=13 if number == 0 else 11.5)

    def text(self, x, y, line, bold=False, colour=_TEXT, anchor="middle", size=13):
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {FONT} font-size="{size}"{weight} '
                          f'fill="{colour}" text-anchor="{anchor}">{_escape(line)}</text>')

    def arrow(self, points, wide=False):
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="{path}" fill="none" stroke="{_LINE}" '
                          f'stroke-width="{2.6 if wide else 1.4}" marker-end="url(#head)"/>')

    def svg(self) -> str:
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} '
                f'{self.height}" width="{self.width}" height="{self.height}" role="img" '
                f'aria-label="{_escape(self.label)}">')
        defs = ('<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{_LINE}"/>'
                "</marker></defs>")
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, defs, ground, *self.parts, "</svg>"]) + "\n"


def _queue_bar(drawing, config):
    drawing.text(24, 36, "Instruction queues (ICU): one per port, in order, one shared cycle "
                 "counter", True, anchor="start", size=14)
    names = list(QUEUES)
    width = (WIDTH - 48 - 6 * (len(names) - 1)) / len(names)
    for number, name in enumerate(names):
        bits = word_bits(UNITS[QUEUES[name].unit], config)
        drawing.box(24 + number * (width + 6), 48, round(width, 1), 54, _QUEUE,
                    [name, f"{config.depth_of(name)} x", f"{bits} bit"])
    drawing.text(24, 124, "Every queue counts cycles since the barrier and issues on the cycle "
                 "that the compiler chose. Nothing asks whether anything is ready.", colour=_QUIET,
                 anchor="start")


def _slices(drawing, config, t):
    rows, columns, half = config.rows, config.columns, config.half_columns
    y, height = 150, 250
    drawing.box(24, y, 372, height, _SLICE, [])
    drawing.text(210, y + 22, f"MXM  {rows} x {columns} multipliers, int8 x "
                 f"{config.activation_bits} bit", True)
    for number, x in enumerate((40, 216)):
        drawing.box(x, y + 36, 164, 34, "#ffffff", [f"activation feed {number}"])
        drawing.arrow([(x + 82, y + 70), (x + 82, y + 84)])
        drawing.box(x, y + 86, 164, 74, _SRAM,
                    [f"{half} columns x {rows} rows",
                     f"{config.weight_depth} words of {half * rows} bytes",
                     "weights and KV cache"])
        drawing.arrow([(x + 82, y + 160), (x + 82, y + 174)])
        drawing.box(x, y + 176, 164, 40, "#ffffff",
                    ["accumulators", f"{config.accumulators} x int32 a column"])
    drawing.text(210, y + 238, f"matmul to drain {t.matmul_to_drain} cycles; second port: KV "
                 f"writes, read-out {t.read_out}", colour=_QUIET, size=11.5)
    lane = f"{config.lanes} lanes"
    drawing.box(416, y, 176, 74, _SLICE, ["VXM", "multiply, add, max, exp2,",
                                          f"SiLU, GELU: {t.vxm} cycles"])
    drawing.box(416, y + 88, 176, 74, _SLICE, ["RED", "sum, max, 1/x, 1/sqrt",
                                               f"{t.reduce} / {t.reduce_function} cycles"])
    drawing.box(416, y + 176, 176, 74, _SLICE, ["PERM (SXM)", f"{config.patterns} lane patterns",
                                                f"{t.perm} cycles"])
    drawing.box(612, y, 176, 162, _SRAM, [f"MEM: {config.mem_banks} banks",
                                          f"{config.mem_depth} vectors x {lane}",
                                          "int16, one read and", "one write port each",
                                          f"read {t.mem_read} cycle"])
    drawing.box(612, y + 176, 176, 74, _SRAM, ["CONST", f"{config.const_depth} vectors",
                                               f"read {t.const_read} cycles"])
    drawing.box(808, y, 168, 162, _SLICE, ["SAMPLE", "argmax, or Gumbel-max",
                                           "with Threefry noise",
                                           f"logits {t.sample_skew} cycles late"])
    drawing.box(808, y + 176, 168, 74, _HOST, ["C2C links", "reserved:", "queues 16, 17"], True)
    return y + height


def _streams(drawing, config, top):
    y = top + 46
    drawing.parts.append(f'<rect x="24" y="{y}" width="952" height="46" rx="6" fill="#f3f5f7" '
                         f'stroke="{_LINE}" stroke-width="1.4"/>')
    names = [f"M{bank}" for bank in range(config.mem_banks)]
    names += ["CONST", "ACC (int32)", "VXM (int32)", "PERM", "RED"]
    drawing.text(40, y + 20, "Streams", True, anchor="start")
    drawing.text(40, y + 37, ", ".join(names) + f": {config.lanes} lanes each; a value is there "
                 "for exactly one cycle", anchor="start", colour=_QUIET)
    for x in (210, 504, 700):
        drawing.arrow([(x - 14, top + 2), (x - 14, y - 2)], True)
        drawing.arrow([(x + 14, y), (x + 14, top + 4)], True)
    # The sampler, beside the links, takes operands only; its token goes to the sequencer.
    drawing.arrow([(798, y), (798, top - 168), (806, top - 168)], True)
    drawing.text(890, top + 28, "token to the sequencer", colour=_QUIET, size=11.5)
    drawing.text(357, top + 28, "results down, operands up", colour=_QUIET, size=11.5)
    return y + 46


def _host(drawing, config, top):
    y = top + 26
    drawing.box(24, y, 470, 74, _HOST,
                ["Sequencer", f"token memory ({config.context}), position, row "
                 f"(one of {config.param_rows}), prompt or generate",
                 "restarts all queues at the token barrier, counts the cycles of a step"])
    drawing.box(514, y, 462, 74, _HOST,
                ["Host port", "framed byte stream with CRC-32: load, run, tokens, read-back",
                 "the only place with valid and ready; acts at the barrier"])
    drawing.arrow([(514, y + 37), (496, y + 37)])
    drawing.text(500, y + 100, "Fault register: first cause, queue and cycle. A wrong schedule is "
                 "an error, never a stall.", colour=_QUIET)


def page() -> str:
    """The SVG."""
    config = profile(SHOWN)
    drawing = Drawing(WIDTH, HEIGHT, "Slices, queues, streams and memories of Metronome")
    t = timing(config)
    _queue_bar(drawing, config)
    bottom = _slices(drawing, config, t)
    _host(drawing, config, _streams(drawing, config, bottom))
    return drawing.svg()
