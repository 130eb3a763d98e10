import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solids import (
    Frame,
    ball,
    capsule,
    cone,
    cube,
    cylinder,
    nearest,
    prism,
    pyramid,
    rotation,
)

from vaejax.data.redrawn.raycast import Hit, Rays, Vec, camera, is_hit, lambert, project, upright

RADIUS, HALF = 0.8, 0.6
STEP = 0.005


def polygon(p, sides):
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.max([np.sin(a) * p[0] + np.cos(a) * p[2] for a in angles], axis=0)


def rod(p, half):
    return np.stack([p[0], np.maximum(np.abs(p[1]) - half, 0), p[2]])


# Each solid as a function that is at most 0 inside, of points [3, ...].
INSIDE = {
    "cube": lambda p: np.abs(p).max(0) - 1,
    "prism": lambda p: np.maximum(polygon(p, 6), np.abs(p[1])) - 1,
    "pyramid": lambda p: np.maximum(2 * polygon(p, 4) + p[1] - 1, -1 - p[1]),
    "ball": lambda p: np.linalg.norm(p, axis=0) - 1,
    "cylinder": lambda p: np.maximum(np.hypot(p[0], p[2]), np.abs(p[1])) - 1,
    "cone": lambda p: np.maximum(2 * np.hypot(p[0], p[2]) + p[1] - 1, -1 - p[1]),
    "capsule": lambda p: np.linalg.norm(rod(p, HALF), axis=0) - 1,
    "upright box": lambda p: np.maximum(
        np.maximum(np.abs(p[0]), np.abs(p[2])) - RADIUS, np.abs(p[1]) - HALF
    ),
    "upright cylinder": lambda p: np.maximum(np.hypot(p[0], p[2]) - RADIUS, np.abs(p[1]) - HALF),
    "upright ball": lambda p: np.linalg.norm(p, axis=0) - RADIUS,
    "upright capsule": lambda p: np.linalg.norm(rod(p, HALF), axis=0) - RADIUS,
}


@jax.jit
def meet_all(rays):
    kinds = jnp.array([[1, 0], [0, 0], [0, 1], [0, 1]], bool)
    halves = jnp.array([HALF, HALF, 0, HALF])
    one = jax.vmap(lambda kind, half: upright(rays, kind[0], kind[1], RADIUS, half))
    uprights = one(kinds, halves)
    names = ["box", "cylinder", "ball", "capsule"]
    return {
        "cube": cube(rays),
        "prism": prism(rays, 6),
        "pyramid": pyramid(rays),
        "ball": ball(rays),
        "cylinder": cylinder(rays),
        "cone": cone(rays),
        "capsule": capsule(rays, HALF),
    } | {f"upright {n}": jax.tree.map(lambda v, i=i: v[i], uprights) for i, n in enumerate(names)}


@pytest.fixture(scope="module")
def met():
    """Rays from all around to points near the solids; origins and directions `[3, N]`; the hits."""
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(3, 600))
    origin *= 4 / np.linalg.norm(origin, axis=0)
    target = rng.uniform(-1.3, 1.3, size=(3, 600))
    target[:, :50] *= 0.2
    direction = (target - origin) / 4
    # Some along an axis, where a coordinate of the direction is 0.
    axis = np.arange(60) % 3
    direction[:, -60:] = -np.eye(3)[:, axis]
    origin[:, -60:] = 4 * np.eye(3)[:, axis] + 0.3 * rng.uniform(-1, 1, (3, 60))
    rays = Rays(Vec(*map(jnp.float32, origin)), Vec(*map(jnp.float32, direction)))
    return origin, direction, jax.tree.map(np.asarray, meet_all(rays))


@pytest.mark.parametrize("name", INSIDE)
def test_rays_meet_a_solid_where_a_march_along_them_enters_it(met, name):
    origin, direction, hits = met
    t, f = hits[name].t, INSIDE[name]
    steps = np.arange(0, 8, STEP)
    inside = f(origin[:, :, None] + direction[:, :, None] * steps) <= 0
    found = inside.any(1)
    assert 150 < found.sum() < 590
    hit = t < 1e8
    assert hit[found].all()
    assert (np.abs(t - steps[inside.argmax(1)])[found] <= STEP).all()
    # What the march steps over is thinner than a step; such hits are on the surface all the same.
    assert (hit & ~found).sum() < 10
    at = origin + direction * t
    assert np.abs(f(at[:, hit])).max() < 1e-4


@pytest.mark.parametrize("name", INSIDE)
def test_normals_are_the_direction_in_which_the_surface_is_left(met, name):
    origin, direction, hits = met
    t, f = hits[name].t, INSIDE[name]
    hit = t < 1e8
    at = (origin + direction * t)[:, hit]
    normal = np.stack(hits[name].normal)[:, hit]
    normal /= np.linalg.norm(normal, axis=0)
    assert ((normal * direction[:, hit]).sum(0) < 0).all()

    def gradient(p):
        h = 1e-4 * np.eye(3)
        g = np.stack([f(p + e[:, None]) - f(p - e[:, None]) for e in h])
        return g / np.linalg.norm(g, axis=0)

    # Beside an edge the two differ.
    inner, outer = gradient(at - 0.02 * normal), gradient(at + 0.02 * normal)
    smooth = (inner * outer).sum(0) > 0.999
    assert smooth.sum() > 0.85 * hit.sum()
    assert ((normal * outer).sum(0)[smooth] > 0.999).all()


def test_upright_shapes_are_the_single_solids_in_a_frame(met):
    origin, direction, hits = met
    rays = Rays(Vec(*map(jnp.float32, origin)), Vec(*map(jnp.float32, direction)))
    frame = Frame(Vec(0.0, 0.0, 0.0), size=Vec(RADIUS, HALF, RADIUS))

    @jax.jit
    def framed():
        local = frame.local(rays)
        return {"box": cube(local), "cylinder": cylinder(local)}

    for name, hit in framed().items():
        there = hits[f"upright {name}"].t < 1e8
        np.testing.assert_array_equal(there, is_hit(hit))
        np.testing.assert_allclose(hits[f"upright {name}"].t[there], hit.t[there], atol=1e-3)


def test_a_point_on_a_pixels_ray_projects_to_the_pixels_centre():
    position, target, height = Vec(1.0, 2.0, 4.0), Vec(0.2, 0.5, -0.1), 0.8

    @jax.jit
    def there_and_back():
        rays = camera(position, target, height)
        depth = 3 + jnp.arange(64 * 64).reshape(64, 64) / 1000
        seen, found = project(rays.at(depth), position, target, height)
        return seen, found, depth, rays, project(target, position, target, height)

    seen, found, depth, rays, (middle, _) = there_and_back()
    centres = np.arange(64) + 0.5
    np.testing.assert_allclose(seen.x, np.broadcast_to(centres, (64, 64)), atol=1e-3)
    np.testing.assert_allclose(seen.y, np.broadcast_to(centres[:, None], (64, 64)), atol=1e-3)
    np.testing.assert_allclose(found, depth, rtol=1e-5)
    np.testing.assert_allclose([middle.x, middle.y], [32, 32], atol=1e-4)
    # Upright: going down the picture goes down the world.
    assert (np.diff(rays.direction.y, axis=0) < 0).all()


def test_a_camera_traces_the_pixels_it_is_asked_for():
    def trace(**pixels):
        return camera(Vec(1.0, 2.0, 4.0), Vec(0.0, 0.5, 0.0), 0.8, **pixels).direction

    @jax.jit
    def both():
        return trace(), trace(columns=jnp.arange(5, 9), rows=jnp.arange(40, 42))

    whole, part = both()
    for plane, window in zip(whole, part, strict=True):
        found = np.broadcast_to(plane, (64, 64))[40:42, 5:9]
        np.testing.assert_allclose(found, np.broadcast_to(window, (2, 4)), atol=1e-6)


@pytest.mark.parametrize("about", ["x", "y", "z"])
def test_a_quarter_turn_is_counter_clockwise(about):
    turned = np.array([list(axis) for axis in rotation(jnp.pi / 2, about)], float)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[about]
    np.testing.assert_allclose(turned[first], np.eye(3)[second], atol=1e-6)
    np.testing.assert_allclose(turned[second], -np.eye(3)[first], atol=1e-6)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-6)


def test_a_frame_places_turns_and_stretches_a_solid():
    centre, size = np.array([0.3, -0.2, 0.5]), np.array([0.5, 1.0, 1.5])
    rng = np.random.default_rng(1)
    origin = np.array([0.0, 1.0, 6.0])[:, None]
    target = rng.uniform(-1.5, 1.5, (3, 300))
    direction = target - origin

    @jax.jit
    def placed():
        frame = Frame(Vec(*centre.tolist()), rotation(0.7, "y"), Vec(*size.tolist()))
        rays = Rays(Vec(*origin[:, 0].tolist()), Vec(*map(jnp.float32, direction)))
        hit = ball(frame.local(rays))
        return hit.t, is_hit(hit), frame.world_normal(hit.normal), frame.axes

    t, hit, normal, axes = jax.tree.map(np.asarray, placed())
    turn = np.array([np.asarray(axis, float) for axis in axes])
    at = (origin + direction * t)[:, hit]
    own = (turn @ (at - centre[:, None])) / size[:, None]
    assert 100 < hit.sum() < 300
    np.testing.assert_allclose((own**2).sum(0), 1, atol=1e-4)
    gradient = turn.T @ (own / size[:, None])
    gradient /= np.linalg.norm(gradient, axis=0)
    np.testing.assert_allclose(np.stack(normal)[:, hit], gradient, atol=1e-3)


def test_nearest_is_the_first_hit_and_none_where_all_miss():
    far = 1e9
    hits = [
        Hit(jnp.array([1.0, 3.0, far, far]), Vec(*jnp.ones((3, 4)))),
        Hit(jnp.array([2.0, 2.0, 5.0, far]), Vec(*(2 * jnp.ones((3, 4))))),
    ]
    hit, which = nearest(hits)
    np.testing.assert_array_equal(hit.t, [1, 2, 5, jnp.float32(far)])
    np.testing.assert_array_equal(which, [0, 1, 1, -1])
    np.testing.assert_array_equal(hit.normal.y[:3], [1, 2, 2])


def test_what_faces_away_from_the_light_gets_none():
    up = Vec(0.0, 1.0, 0.0)
    assert lambert(up, up) == 1
    assert lambert(up, Vec(0.0, -1.0, 0.0)) == 0
    np.testing.assert_allclose(lambert(up, Vec(0.6, 0.8, 0.0)), 0.8)
