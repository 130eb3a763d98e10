"""A source whose factors follow a structural causal model, not each its own way."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor, Renderable
from vaejax.data.scm import SCM, Do


@flax.struct.dataclass
class Sample:
    """Examples with what made them.

    Attributes:
      images: `[n, H, W, C]` float32 in [0, 1].
      values: `[n, K]` float32, the variables in classes, not rounded.
      noise: `[n, K]` float32; with the model it gives the values.
    """

    images: jax.Array
    values: jax.Array
    noise: jax.Array


@flax.struct.dataclass
class SCMSource:
    """Images of another source, drawn at the values of a causal model.

    A pytree, as every source. What draws its images draws them between classes too; what looks them
    up rounds. Where the base has `masks`, so has this.

    Attributes:
      base: What renders; a `Renderable`.
      scm: The model, of the factors of the base.
      world: What to call it; if empty, the source has the name of its base, as a dataset whose
        factors always follow this model.

    Raises:
      DataError: At construction, when the base cannot render or has other factors.

    Example:
      >>> from vaejax import data
      >>> from vaejax.data.worlds import world
      >>> base = data.source("dsprites", image_size=32)
      >>> source = SCMSource(base, world("fork", base.name, base.factors), "fork")
      >>> draw = jax.jit(lambda source, key: source.batch(key, 8))
      >>> images, factors = draw(source, jax.random.key(0))
      >>> source.name, images.shape, factors.dtype
      ('dsprites@fork', (8, 32, 32, 1), dtype('int32'))
    """

    base: Renderable
    scm: SCM = flax.struct.field(pytree_node=False)
    world: str = flax.struct.field(pytree_node=False, default="")

    def __post_init__(self) -> None:
        if not hasattr(self.base, "render"):
            raise DataError(f"{self.base.name}: cannot render, but images of values are needed")
        if self.scm.factors != self.base.factors:
            raise DataError(
                f"{self.base.name}: a model of {_named(self.scm.factors)}, "
                f"but the factors are {_named(self.base.factors)}"
            )
        # Of the instance: a protocol with `masks` must hold for those that have them, and no other.
        if hasattr(self.base, "masks"):
            object.__setattr__(self, "masks", self.base.masks)

    @property
    def name(self) -> str:
        """The base's name and the world's, `"dsprites@fork"`."""
        return f"{self.base.name}@{self.world}" if self.world else self.base.name

    @property
    def origin(self) -> str:
        """The base's."""
        return self.base.origin

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        return self.base.image_shape

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The variables, in the order of the base."""
        return self.base.factors

    @property
    def correlated(self) -> bool:
        """Whether any variable depends on another."""
        return bool(self.scm.graph.any())

    def __len__(self) -> int:
        return len(self.base)

    def render(self, factors: jax.Array) -> jax.Array:
        """The image `[H, W, C]` of one vector of values `[K]`, as the base draws it."""
        return self.base.render(factors)

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples from the model.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, C]` float32 in [0, 1] at the values, and the nearest classes `[n, K]`
          int32. Counterfactuals need the values themselves, see `sample`.
        """
        drawn = self.sample(key, n)
        return drawn.images, jnp.round(drawn.values).astype(jnp.int32)

    def sample(self, key: jax.Array, n: int) -> Sample:
        """The examples that `batch` draws, with their values and noise."""
        return self.do({}, key, n)

    def do(self, do: Do, key: jax.Array, n: int) -> Sample:
        """Interventional examples: the noise that `sample` draws, with some variables set.

        Args:
          do: Names of variables, and what to set them to: a number, or one for each example.
          key: PRNG key.
          n: Number of examples, static under jit.

        Raises:
          DataError: As `SCM.solve`.
        """
        noise = self.scm.sample_noise(key, n)
        values = self.scm.solve(noise, do)
        return Sample(jax.vmap(self.render)(values), values, noise)

    def counterfactual(
        self, values: jax.Array, do: Do, *, propagate: bool = True, key: jax.Array | None = None
    ) -> jax.Array:
        """The values `[n, K]` that examples would have had, see `SCM.counterfactual`."""
        return self.scm.counterfactual(values, do, propagate=propagate, key=key)

    def set_factor(
        self,
        values: jax.Array,
        k: jax.Array | int,
        value: jax.Array | float,
        *,
        propagate: bool = True,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The same for one variable by its index, traced or not, see `SCM.set_factor`."""
        return self.scm.set_factor(values, k, value, propagate=propagate, key=key)


def _named(factors: tuple[Factor, ...]) -> str:
    return ", ".join(f"{factor.name} ({factor.size})" for factor in factors)
