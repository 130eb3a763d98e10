"""The fifty toys of the redrawn SmallNORB: five categories of ten, by tables of proportions.

Lengths are relative, since toys are scaled to one size. They are of whole parts along a toy, and
half of them across; angles are in degrees above the horizontal.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from vaejax.data.redrawn.parts import BALL, BOX, Part, limb

LABELS = ("body", "head", "limbs", "tail", "wings", "wheels", "cabin", "load")
"""What parts are called. Each category has some of them."""

BODY, HEAD, LIMBS, TAIL, WINGS, WHEELS, CABIN, LOAD = range(len(LABELS))

_SIDES = (-1, 1)
_AXLE = (1.0, 1.0, 0.0)


def _table(text: str) -> dict[str, SimpleNamespace]:
    """Columns of a table as records: the first line has their names, other lines a field each."""
    names, *rows = (line.split() for line in text.strip().splitlines())
    return {
        name: SimpleNamespace(**{row[0]: float(row[column]) for row in rows})
        for column, name in enumerate(names, 1)
    }


def _polar(length: float, degrees: float) -> np.ndarray:
    """A vector in the plane of x and y, by its angle above x."""
    angle = np.radians(degrees)
    return length * np.array([np.cos(angle), np.sin(angle), 0.0])


_ANIMALS = _table("""
             horse   cow elephant giraffe  dog   pig rhino moose dinosaur lion
length        1.05  1.10     1.00    0.80 0.85  0.85  1.20  0.85     1.00 1.05
girth         0.31  0.38     0.50    0.28 0.24  0.42  0.44  0.28     0.40 0.27
leg           0.70  0.50     0.62    0.95 0.48  0.22  0.38  0.75     0.42 0.50
leg_thick     0.09  0.11     0.18    0.08 0.08  0.12  0.16  0.07     0.14 0.11
stride        0.14  0.04     0.10    0.06 0.16  0.03  0.05  0.14     0.10 0.18
neck          0.50  0.35     0.30    1.30 0.30  0.20  0.35  0.45     1.05 0.24
neck_angle      48    25       15      68   50    10    -5    50       40   30
neck_thick    0.17  0.20     0.28    0.13 0.13  0.25  0.25  0.14     0.18 0.30
head          0.30  0.32     0.42    0.28 0.28  0.32  0.42  0.26     0.26 0.34
head_thick    0.16  0.20     0.34    0.12 0.20  0.28  0.24  0.14     0.13 0.25
snout         0.38  0.24     0.85    0.28 0.26  0.22  0.38  0.34     0.16 0.24
snout_angle    -38   -35      -72     -28  -10    -8    55   -30       -5  -12
snout_thick   0.12  0.15     0.11    0.09 0.10  0.16  0.08  0.12     0.09 0.14
ears          0.12  0.42     0.66    0.13 0.22  0.26  0.20  0.56     0.06 0.22
ears_high     0.14  0.06     0.28    0.12 0.14  0.12  0.09  0.20     0.03 0.16
tail          0.70  0.55     0.45    0.50 0.50  0.20  0.32  0.16     1.25 0.85
tail_angle     -62   -78      -75     -75   55    30   -60    20      -14  -20
tail_thick    0.09  0.05     0.05    0.05 0.06  0.04  0.05  0.07     0.20 0.05
""")


def _animal(a: SimpleNamespace) -> list[Part]:
    height, half = a.leg + 0.75 * a.girth, a.length / 2 + 0.35 * a.girth
    shoulder = np.array([half - 0.45 * a.girth, height + 0.2 * a.girth, 0])
    rump = np.array([0.1 * a.girth - half, height + 0.3 * a.girth, 0])
    nape = shoulder + _polar(a.neck, a.neck_angle)
    brow, jaw = nape - _polar(0.1 * a.head, -15), nape + _polar(0.9 * a.head, -15)
    # A horn rises from the end of the head, anything else continues it.
    muzzle = jaw - _polar(0.3 * a.head, -15)
    crown = nape + np.array([0.2 * a.head, 0.75 * a.head_thick, 0])
    parts = [
        Part(BODY, (0, height, 0), (half, a.girth, 0.85 * a.girth), (0.55, 1, 1)),
        limb(HEAD, shoulder, nape, 1.15 * a.neck_thick, a.neck_thick, (0.15, 1, 1), -1),
        limb(HEAD, brow, jaw, a.head_thick, roundness=(0.9, 1, 1)),
        limb(HEAD, muzzle, muzzle + _polar(a.snout, a.snout_angle), a.snout_thick),
        Part(HEAD, crown, (0.08, a.ears_high, a.ears), (1, 1, 0.8)),
        limb(
            TAIL, rump, rump + _polar(a.tail, 180 - a.tail_angle), a.tail_thick, 0, (0.2, 1, 1), -1
        ),
    ]
    for side in _SIDES:
        z = side * (0.72 * a.girth - 0.6 * a.leg_thick)
        for end in _SIDES:
            x = end * (half - a.leg_thick - 0.12 * a.girth)
            foot = (x + a.stride * side * end, 0, z)
            parts.append(limb(LIMBS, (x, height, z), foot, a.leg_thick, 0, (0.15, 1, 1), -1))
    return parts


# Arms by how far they are raised above the horizontal, and turned forwards from sideways. The prop
# in the right hand is held upright, or across at 0.
_HUMANS = _table("""
             walker cowboy soldier dancer giant child  monk farmer runner knight
leg            0.90   0.85    0.85   0.85  0.65  0.52  0.80   0.95   0.90   0.80
leg_thick      0.13   0.15    0.14   0.10  0.18  0.13  0.12   0.11   0.12   0.16
gap            0.16   0.30    0.20   0.10  0.26  0.15  0.10   0.16   0.12   0.24
stride         0.32   0.05    0.25   0.05  0.10  0.14  0.00   0.04   0.62   0.15
torso          0.72   0.70    0.75   0.62  0.95  0.52  0.75   0.70   0.66   0.75
shoulders      0.30   0.34    0.32   0.23  0.46  0.24  0.32   0.27   0.28   0.38
belly          0.20   0.22    0.24   0.16  0.36  0.20  0.27   0.17   0.19   0.27
head           0.19   0.19    0.20   0.18  0.20  0.28  0.20   0.18   0.18   0.20
hat            0.15   0.42    0.25   0.10  0.15  0.22  0.22   0.40   0.14   0.21
hat_high       0.08   0.06    0.14   0.20  0.06  0.09  0.24   0.05   0.08   0.30
arm            0.72   0.68    0.62   0.75  0.76  0.46  0.56   0.80   0.66   0.65
arm_thick      0.09   0.10    0.10   0.07  0.13  0.09  0.10   0.08   0.09   0.12
left_raise      -70    -50     -20     60   -50    35   -30      0    -30    -60
left_turn        75     10      60      0    15    20    55      0     75     10
right_raise     -70    -40     -20     45   -50   -60   -30      0    -30     20
right_turn      -75     10      50      0    15    10    55      0    -75     40
skirt          0.00   0.00    0.00   0.52  0.00  0.00  0.44   0.00   0.00   0.00
prop           0.00   0.00    1.50   0.00  0.00  0.00  0.00   0.00   0.00   1.30
upright        0.00   0.00    0.00   0.00  0.00  0.00  0.00   0.00   0.00   1.00
""")


def _human(h: SimpleNamespace) -> list[Part]:
    neck = h.leg + h.torso
    waist = h.leg + 0.15
    hips = (0.95 * h.belly, 0.17, 0.8 * h.shoulders)
    robe = (h.skirt, 0.4 * waist, h.skirt)
    brim = neck + 1.3 * h.head + 0.6 * h.hat_high
    parts = [
        Part(
            BODY, (0, h.leg + 0.48 * h.torso, 0), (h.belly, 0.6 * h.torso, h.shoulders),
            (0.8, 0.22, 0.5), (0, 0.3, 0),
        ),
        Part(HEAD, (0.03, neck + 0.85 * h.head, 0), (h.head, 1.15 * h.head, 0.92 * h.head), BALL),
        Part(HEAD, (0, brim, 0), (h.hat, h.hat_high, h.hat), (1, 0.24, 1), (0, -1, 0)),
        Part(BODY, (0, waist - robe[1], 0), robe, (1, 0.22, 1), (0, -1, 0))
        if h.skirt
        else Part(BODY, (0, h.leg, 0), hips, (0.9, 0.7, 0.7)),
    ]  # fmt: skip
    hand = np.zeros(3)
    arms = ((h.left_raise, h.left_turn), (h.right_raise, h.right_turn))
    for side, (lift, turn) in zip(_SIDES, np.radians(arms), strict=True):
        shoulder = np.array([0, neck - h.arm_thick, side * (h.shoulders - 0.3 * h.arm_thick)])
        outwards = side * np.cos(lift) * np.cos(turn)
        hand = shoulder + h.arm * np.array([np.cos(lift) * np.sin(turn), np.sin(lift), outwards])
        hip = (0, h.leg + 0.1, 0.8 * side * h.gap)
        parts += [
            limb(LIMBS, shoulder, hand, h.arm_thick),
            limb(LIMBS, hip, (side * h.stride, 0, side * h.gap), h.leg_thick),
        ]
    if h.prop:
        grip = _polar(h.prop / 2, 80) if h.upright else h.prop * np.array([0.37, 0.22, -0.25])
        parts.append(limb(LOAD, hand - grip, hand + grip, 0.06, roundness=BOX))
    return parts


# `at` is the wing's place along the body and `high` its height over the body's girth; `engine` how
# far out on the wing it sits; `upper` the height of a second wing.
_PLANES = _table("""
             airliner jumbo glider fighter biplane trainer bomber delta cargo stunt
length           2.40  2.30   1.70    2.20    1.50    1.60   2.00  2.30  1.90  1.30
girth            0.18  0.25   0.14    0.17    0.19    0.20   0.21  0.17  0.30  0.23
span             1.15  1.20   1.40    0.75    1.00    1.10   1.35  0.85  1.25  0.85
chord            0.27  0.33   0.15    0.42    0.24    0.24   0.31  0.52  0.29  0.31
sweep              28    32      0      38       0       3      8    50     6    -8
at               0.10  0.10   0.15   -0.15    0.15    0.12   0.08 -0.15  0.05  0.12
high            -0.40 -0.40   0.80    0.00   -0.70    0.90   0.30 -0.30  0.95 -0.50
dihedral            6     6      3       0       2       2      3     0     0     5
taper            0.20  0.18   0.16    0.20    0.08    0.06   0.20  0.16  0.14  0.12
tail             0.45  0.52   0.36    0.42    0.44    0.42   0.55  0.10  0.58  0.42
tail_chord       0.14  0.17   0.10    0.18    0.15    0.14   0.17  0.10  0.19  0.18
tail_sweep         28    32      0      38       0       5      5    45     8    -4
fin              0.42  0.44   0.30    0.42    0.34    0.36   0.40  0.44  0.56  0.36
cockpit          0.20  0.50   0.28    0.40    0.14    0.26   0.24  0.36  0.26  0.30
cockpit_high     0.20  0.30   0.18    0.22    0.22    0.24   0.24  0.18  0.30  0.32
engine           0.36  0.42   0.00    0.30    0.00    0.00   0.42  0.32  0.42  0.00
engine_long      0.32  0.36   0.00    0.60    0.00    0.00   0.46  0.60  0.42  0.00
engine_thick     0.11  0.13   0.00    0.10    0.00    0.00   0.14  0.10  0.15  0.00
drop             0.12  0.16   0.00    0.00    0.00    0.00   0.00  0.08  0.06  0.00
upper            0.00  0.00   0.00    0.00    0.62    0.00   0.00  0.00  0.00  0.00
propeller        0.00  0.00   0.00    0.00    0.40    0.42   0.00  0.00  0.00  0.42
""")


def _plane(p: SimpleNamespace) -> list[Part]:
    half, back = p.length / 2, -0.43 * p.length
    cockpit = (p.cockpit, p.cockpit_high, 0.62 * p.girth)
    parts = [
        limb(BODY, (-half, 0.25 * p.girth, 0), (half, 0, 0), p.girth, 0, (0.45, 1, 1), 0.25),
        Part(CABIN, (0.45 * half, 0.7 * p.girth, 0), cockpit, BALL),
        limb(
            TAIL, (back + 0.1, 0.2 * p.girth, 0), (back - 0.35 * p.fin, p.girth + p.fin, 0),
            0.42 * p.fin, 0.045, (0.16, 0.8, 0), -1,
        ),
    ]  # fmt: skip
    slope, tail_slope, rise = np.tan(np.radians([p.sweep, p.tail_sweep, p.dihedral]))
    for side in _SIDES:
        root = np.array([p.at, p.high * p.girth, 0])
        wing = np.array([-slope, rise, side])
        tail_root = np.array([back, 0.3 * p.girth, 0])
        tail_tip = tail_root + p.tail * np.array([-tail_slope, 0, side])
        parts += [
            limb(WINGS, root, root + p.span * wing, 0.05, p.chord, (p.taper, 0, 0.9), -1),
            limb(TAIL, tail_root, tail_tip, 0.04, p.tail_chord, (0.15, 0, 0.9), -1),
        ]
        if p.engine:
            front = root + p.span * p.engine * wing + [p.engine_long, -p.drop, 0]
            rear = front - [1.3 * p.engine_long, 0, 0]
            parts.append(limb(WINGS, rear, front, p.engine_thick, 0, (0.15, 1, 1), 0.6))
    if p.upper:
        size = (0.9 * p.chord, 0.05, p.span)
        parts.append(Part(WINGS, (p.at + 0.1, p.upper, 0), size, (0.9, 0, 0.25)))
    if p.propeller:
        tip = np.array([0, np.cos(0.4), np.sin(0.4)]) * p.propeller
        nose = np.array([half - 0.02, 0, 0])
        parts += [
            limb(BODY, (0.3 * half, 0, 0), nose, 1.02 * p.girth, 0, (0.08, 1, 1), -1),
            limb(WINGS, nose - tip, nose + tip, 0.04, 0.06, BOX),
        ]
    return parts


# The load lies between `back` and `front`, shares of the length. Extras: 1 hatch, 2 side boards,
# 3 tipped up, 4 ladder, 5 sloping drum, 6 logs, 7 crane.
_TRUCKS = _table("""
               box tanker pickup  dump  fire  nose mixer  logs crane   van
length        2.40   2.60   1.90  2.10  2.50  2.80  2.20  2.50  2.10  1.80
width         0.42   0.40   0.42  0.46  0.38  0.38  0.42  0.44  0.44  0.44
wheel         0.20   0.20   0.25  0.28  0.22  0.22  0.22  0.21  0.26  0.21
chassis       0.14   0.14   0.20  0.18  0.16  0.16  0.16  0.12  0.18  0.16
cab           0.48   0.46   0.52  0.50  0.58  0.42  0.46  0.48  0.46  0.48
cab_high      0.62   0.66   0.52  0.68  0.56  0.70  0.66  0.66  0.52  0.62
hood          0.00   0.00   0.46  0.00  0.00  0.52  0.00  0.00  0.00  0.28
hood_high     0.00   0.00   0.24  0.00  0.00  0.40  0.00  0.00  0.00  0.26
back          0.00   0.00   0.00  0.00  0.00  0.00  0.04  0.00  0.08  0.00
front         0.76   0.78   0.48  0.74  0.75  0.63  0.75  0.76  0.62  0.60
load_high     0.92   0.70   0.20  0.50  0.46  0.95  0.86  0.08  0.36  0.74
load_wide     1.05   1.00   1.00  1.05  1.00  1.10  0.95  1.00  0.85  1.00
load_round    0.00   0.95   0.00  0.10  0.00  0.00  1.00  0.00  0.10  0.15
extra            0      1      2     3     4     0     5     6     7     0
axles            3      3      2     2     3     3     3     3     2     2
""")


def _truck(t: SimpleNamespace) -> list[Part]:
    half, deck = t.length / 2, t.wheel + t.chassis
    wide = t.load_wide * t.width
    start, end = (share * t.length - half for share in (t.back, t.front))
    middle, long = (start + end) / 2, (end - start) / 2
    top = deck + t.load_high
    cab_at = half - t.hood - t.cab / 2
    cab_size = (t.cab / 2, t.cab_high / 2, 0.95 * t.width)
    hood_size = (t.hood / 2 + 0.05, t.hood_high / 2, 0.8 * t.width)
    round_load = (0.12 * t.load_round, t.load_round, t.load_round)
    bed = Part(LOAD, (middle, deck + t.load_high / 2, 0), (long, t.load_high / 2, wide), round_load)
    places = [1.3 * t.wheel - half, half - 1.4 * t.wheel, 3.5 * t.wheel - half][: int(t.axles)]
    parts = [
        Part(BODY, (-0.04, deck - t.chassis / 2, 0), (half - 0.04, t.chassis / 2, 0.8 * t.width)),
        Part(CABIN, (cab_at, deck + t.cab_high / 2, 0), cab_size, (0.45, 0.1, 0), (-0.6, -1, 0)),
        *(Part(WHEELS, (x, t.wheel, 0), (t.wheel, t.wheel, 1.02 * t.width), _AXLE) for x in places),
    ]
    if t.hood:
        parts.append(Part(BODY, (half - t.hood / 2 - 0.05, deck + t.hood_high / 2, 0), hood_size))
    if t.extra == 3:
        bed = bed._replace(centre=bed.centre + np.array([0, 0.14, 0]), along=_polar(1, 18))
    if t.extra == 5:
        low, high = (end, deck + 0.42 * t.load_high, 0), (start, deck + 0.66 * t.load_high, 0)
        bed = limb(LOAD, low, high, t.load_high / 2, wide, (0.5, 1, 1), -0.2)
    parts.append(bed)
    if t.extra == 1:
        parts.append(Part(LOAD, (middle, top, 0), (0.14, 0.12, 0.14), (1, 0, 1)))
    if t.extra == 7:
        parts.append(limb(LOAD, (middle, top, 0), (half + 0.4, top + 0.7, 0), 0.1, roundness=BOX))
        parts.append(Part(LOAD, (start + 0.1, top + 0.1, 0), (0.22, 0.2, 0.75 * wide)))
    for side in _SIDES:
        if t.extra == 2:
            size = (long, 0.14, 0.07)
            parts.append(Part(LOAD, (middle, top + 0.1, side * (wide - 0.07)), size))
        if t.extra == 4:
            ends = (start, top + 0.1, 0.18 * side), (end + 0.5, top + 0.3, 0.18 * side)
            parts.append(limb(LOAD, *ends, 0.06, roundness=BOX))
        if t.extra == 6:
            z = side * 0.21
            parts.append(Part(LOAD, (middle, top + 0.19, z), (long - 0.08, 0.2, 0.2), (0, 1, 1)))
    if t.extra == 6:
        parts.append(Part(LOAD, (middle, top + 0.52, 0), (long - 0.08, 0.2, 0.2), (0, 1, 1)))
    return parts


# `at` is the cabin's middle. Extras: 1 domed, with mudguards, 2 wings of a racing car, 3 spare
# wheel and bumper, 4 roof load, 5 spoiler, 6 mudguards.
_CARS = _table("""
             saloon beetle limousine racer  jeep estate sports  mini roadster hatchback
length         2.10   1.70      2.80  2.20  1.60   2.10   2.00  1.40     2.00      1.70
width          0.46   0.42      0.44  0.24  0.46   0.46   0.48  0.40     0.36      0.45
wheel          0.21   0.21      0.20  0.25  0.29   0.21   0.21  0.19     0.24      0.20
high           0.32   0.32      0.32  0.22  0.36   0.34   0.26  0.32     0.34      0.36
rounded        0.22   0.60      0.10  0.60  0.00   0.12   0.50  0.30     0.40      0.25
at            -0.10  -0.08     -0.10 -0.15 -0.26  -0.28  -0.22 -0.06    -0.42     -0.18
cabin          0.60   0.56      0.95  0.26  0.50   0.76   0.50  0.48     0.26      0.66
cabin_high     0.34   0.40      0.34  0.22  0.40   0.36   0.26  0.36     0.26      0.40
steep          0.60   1.00      0.40  1.00  0.00   0.35   0.90  0.50     0.80      0.60
lean              0      0         0     0     0   -0.6    0.2     0        0      -0.5
extra             0      1         0     2     3      4      5     0        6         0
""")


def _car(c: SimpleNamespace) -> list[Part]:
    half, base = c.length / 2, 0.8 * c.wheel
    top = base + c.high
    body = (c.rounded, 0.5 * c.rounded, 0.5 * c.rounded)
    cabin = (c.cabin, (c.cabin_high + 0.08) / 2, 0.86 * c.width)
    dome = (c.steep, 0.13 + 0.1 * c.steep, 0.8 if c.extra == 1 else 0.0)
    cabin_at = (c.at, top - 0.08 + cabin[1], 0)
    # A racing car's wheels stand clear of its body; mudguards must not hide them.
    reach = c.width * {1: 1.4, 2: 2.0, 6: 1.5}.get(c.extra, 1.1)
    axles = [end * (half - 1.75 * c.wheel) for end in _SIDES]
    parts = [
        Part(BODY, (0, base + c.high / 2, 0), (half, c.high / 2, c.width), body),
        Part(CABIN, cabin_at, cabin, dome, (c.lean, -1, 0)),
        *(Part(WHEELS, (x, c.wheel, 0), (c.wheel, c.wheel, reach), _AXLE) for x in axles),
    ]
    if c.extra == 2:
        parts.append(Part(BODY, (0.12 - half, top + 0.2, 0), (0.17, 0.05, 1.7 * c.width)))
        parts.append(Part(BODY, (half - 0.1, base + 0.06, 0), (0.15, 0.05, 1.8 * c.width)))
    if c.extra == 3:
        parts.append(Part(WHEELS, (-half - 0.08, top - 0.05, 0), (0.1, 0.25, 0.25), (0, 1, 1)))
        parts.append(Part(BODY, (half, base + 0.08, 0), (0.12, 0.1, 1.05 * c.width)))
    if c.extra == 4:
        roof = (c.at - 0.15, top + c.cabin_high + 0.06, 0)
        parts.append(Part(LOAD, roof, (0.5 * c.cabin, 0.1, 0.55 * c.width)))
    if c.extra == 5:
        parts.append(Part(BODY, (0.12 - half, top + 0.13, 0), (0.14, 0.045, 0.95 * c.width)))
    if c.extra in (1, 6):
        guard = (1.4 * c.wheel, 1.2 * c.wheel, 0.13)
        for side in _SIDES:
            parts += [
                Part(BODY, (x, c.wheel + 0.09, side * 1.05 * c.width), guard, (1, 1, 0.4))
                for x in axles
            ]
    return parts


CATEGORIES = {
    "animal": [_animal(row) for row in _ANIMALS.values()],
    "human": [_human(row) for row in _HUMANS.values()],
    "plane": [_plane(row) for row in _PLANES.values()],
    "truck": [_truck(row) for row in _TRUCKS.values()],
    "car": [_car(row) for row in _CARS.values()],
}
"""The parts of each category's ten instances."""
