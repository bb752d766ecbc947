"""The public API: a checkpoint as an object that takes sequences apart and puts them together."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsda_jax.data.sequences import Sequences
from diffsda_jax.factors import Factors, mix
from diffsda_jax.media_codec import MediaCodec
from diffsda_jax.windowed import with_lengths

if TYPE_CHECKING:
    from diffsda_jax.evals.exploration import Components

logger = logging.getLogger(__name__)
_CODES = 1024  # of the prior that components are fitted to


class DiffSDA(MediaCodec):
    """A model with its weights, for files, arrays and factors.

    Two groups of methods:

    - ``reconstruct``, ``swap``, ``sample``, ``traverse`` and ``interpolate`` take and give data in
      the units of the data: files, ``Sequences``, or arrays as ``read`` describes them. Any number
      and length of sequences goes: they pass through the network in windows of the length (and,
      of frames, the stride) it was trained with, batches are filled up to a few sizes, and each
      size is compiled once.
    - ``encode``, ``decode``, ``denoise`` and ``invert`` are the network's own. Arrays are
      normalised (``normalizer`` does it) and go through as they are, one program for each shape.
      ``encode`` takes files and ``Sequences`` as well, like the verbs.

    See ``Codec`` and ``MediaCodec`` for the attributes.

    References:
      DiffSDA (arXiv 2510.05717), sections 3 and 4.

    Examples:
      A random model of two features, to show the calls; ``from_checkpoint`` loads a trained one.

      >>> import jax, numpy as np
      >>> from diffsda_jax import DiffSDA
      >>> from diffsda_jax.model import ModelSpec, init_variables
      >>> spec = ModelSpec("series", (2,), 4, 2, 8, width=4, encoder_width=4)
      >>> model = DiffSDA(spec, init_variables(spec, jax.random.key(0))).using(num_steps=2)
      >>> walk, rest = np.ones((7, 2), np.float32), np.zeros((5, 2), np.float32)
      >>> factors = model.encode(model.read([walk, rest]))  # of different lengths
      >>> factors.static.shape, factors.dynamic.shape, factors.lengths.tolist()
      ((2, 4), (2, 7, 2), [7, 5])
      >>> swapped = model.swap(static_from=walk, dynamic_from=rest)
      >>> swapped.x.shape, swapped.names
      ((1, 5, 2), ('sequence_0_as_sequence_0',))
      >>> model.traverse(walk, along="dimensions", num_places=3, num_components=2).x.shape
      (6, 7, 2)
    """

    def reconstruct(
        self, x: Any, *, start: str = "random", seed: int = 0, progress: bool = False
    ) -> Sequences:
        """Decodes sequences from their own factors, or given factors.

        Args:
          x: B sequences as ``read`` takes them (files, or arrays such as ``[B, V, ...]``), or
            ``Factors``.
          start: noise to decode from: ``"random"`` (what the factors hold), ``"zero"`` (what is
            typical of them, without flicker between steps) or ``"inverted"`` (that of the data
            themselves, nearly lossless).
          seed: of random noise.
          progress: shows a bar.

        Returns:
          As many sequences as given, of their lengths and rates.

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``read``; an unknown start; ``"inverted"``
            for factors or a distilled model.
        """
        given = self._encoded(x, progress=progress)
        own = given.steps, given.factors
        return self._decoded(given.factors, given.outline, start, seed, progress, own)

    def swap(
        self,
        *,
        static_from: Any,
        dynamic_from: Any,
        start: str = "random",
        seed: int = 0,
        progress: bool = False,
    ) -> Sequences:
        """Who or what from one sequence, what happens from another.

        Args:
          static_from: gives s: as ``read`` takes it, or ``Factors``; B sequences, or one for all.
          dynamic_from: gives d, length and rate; B sequences, or one for all.
          start: see ``reconstruct``; ``"inverted"`` is the noise of ``dynamic_from``.
          seed: of random noise.
          progress: shows a bar.

        Returns:
          B sequences, named ``STATIC_as_DYNAMIC``.

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``read``; different numbers of sequences.
        """
        who, what = (self._encoded(x, progress=progress) for x in (static_from, dynamic_from))
        factors = mix(static_from=who.factors, dynamic_from=what.factors)
        whose, places = (
            [place if len(one.factors) > 1 else 0 for place in range(len(factors))]
            for one in (who, what)
        )
        names = [
            f"{who.outline.names[i]}_as_{what.outline.names[j]}"
            for i, j in zip(whose, places, strict=True)
        ]
        outline = what.outline.pick(places, names)
        return self._decoded(factors, outline, start, seed, progress, what.pick(places))

    def sample(
        self,
        count: int,
        length: int | None = None,
        seed: int = 0,
        *,
        start: str = "random",
        progress: bool = False,
    ) -> Sequences:
        """Sequences that never were, from the prior that ``--mode=prior`` trained in the workdir.

        Args:
          count: number B of sequences.
          length: steps of the model (frames of a spectrogram for sound); None = as in training.
          seed: of the draws.
          start: ``"random"`` or ``"zero"``, see ``reconstruct``.
          progress: shows a bar.

        Returns:
          B sequences.

        Raises:
          FileNotFoundError: there is no prior.
          ValueError: a count or length that cannot be sampled, or a prior of another model.
        """
        given = self._encoded(self.load_prior().sample(count, length, seed=seed), "sample")
        return self._decoded(given.factors, given.outline, start, seed, progress)

    def traverse(
        self,
        x: Any = None,
        *,
        factor: str = "static",
        along: str = "pca",
        num_components: int = 3,
        num_places: int = 5,
        reach: float = 2.0,
        codes: Any = None,
        start: str = "random",
        seed: int = 0,
        progress: bool = False,
    ) -> Sequences:
        """Moves sequences along directions of one of their factors.

        Args:
          x: B sequences, as ``read`` takes them (files, or arrays such as ``[B, V, ...]``), or
            ``Factors``; None = one sample of the prior.
          factor: ``"static"`` or ``"dynamic"``, which moves at all steps alike.
          along: how directions are found, as by ``--mode=explore``: ``"pca"``, ``"ica"``,
            ``"varimax"``; or ``"dimensions"``: the factor's own, the first ``num_components``.
          num_components: K.
          num_places: A on each direction, evenly spaced; the middle one of an odd number is the
            sequence itself.
          reach: of the last place, in standard deviations of the codes along the direction.
          codes: what directions are fitted to: ``Factors``, or any sequences ``[N, V, ...]``;
            None = the components that ``--mode=explore`` wrote for this checkpoint (``"pca"``), or
            else those of samples of the prior, or else of ``x``.
          start: see ``reconstruct``; all places of a sequence have one noise.
          seed: of random noise and of the samples.
          progress: shows a bar.

        Returns:
          ``B K A`` sequences, in this order, named ``NAME_FACTOR1_-2std`` and so on.

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``read``; an option that is not allowed,
            or too few codes.
        """
        from diffsda_jax.factor_moves import move  # scikit-learn takes seconds to import

        for name, value in (("num_components", num_components), ("num_places", num_places)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        x = self.load_prior().sample(1, seed=seed) if x is None else x
        given = self._encoded(x, progress=progress)
        components = self._directions(given.factors, factor, along, codes, num_components, seed)
        shares = np.linspace(-1.0, 1.0, num_places).tolist() if num_places > 1 else [0.0]
        moved = move(given.factors, components, shares, reach)
        count = len(components) * num_places
        places = [place for place in range(len(given.factors)) for _ in range(count)]
        names = [
            f"{name}_{factor}{k + 1}_{reach * share:+.2g}std"
            for name in given.outline.names
            for k in range(len(components))
            for share in shares
        ]
        outline, own = given.outline.pick(places, names), given.pick(places)
        return self._decoded(moved, outline, start, seed, progress, own, places)

    @property
    def bounded_dynamic(self) -> bool:
        """Whether d lies between -1 and 1, as tanh made it."""
        return self.spec.dynamic_activation == "tanh"

    def _directions(
        self, own: Factors, factor: str, along: str, codes: Any, num_components: int, seed: int
    ) -> "Components":
        """Directions to move along; see ``traverse``."""
        from diffsda_jax.factor_moves import find_components, load_components

        if codes is not None:
            own = self._encoded(codes).factors
        elif along == "pca" and (file := self.explored()) is not None and file.is_file():
            found = load_components(file, factor, num_components)[0]
            if len(found) < min(num_components, found.directions.shape[1]):
                logger.warning(
                    "%s keeps %d directions of the %s factor, and %d are asked for; explore with a "
                    "larger config.explore.num_components, or give codes",
                    file,
                    len(found),
                    factor,
                    num_components,
                )
            return found
        elif self.has_prior():
            own = with_lengths(self.load_prior().sample(_CODES, seed=seed))
        return find_components(own, factor, along, num_components, seed, self.bounded_dynamic)

    def interpolate(
        self,
        begin: Any,
        end: Any,
        *,
        factor: str = "both",
        num_points: int = 8,
        path: str = "linear",
        start: str = "random",
        seed: int = 0,
        progress: bool = False,
    ) -> Sequences:
        """Goes from one sequence to another through their factors.

        Args:
          begin: B sequences, as ``read`` takes them, or ``Factors``; they give what does not move.
          end: B sequences, where the path leads.
          factor: what moves: ``"static"``, ``"dynamic"`` or ``"both"``. Where d moves, sequences
            have the length of the shorter of the two.
          num_points: K, both ends among them.
          path: of s: ``"linear"``, or ``"spherical"`` about the mean of all that are given.
          start: ``"random"`` or ``"zero"``, see ``reconstruct``; one noise for a path.
          seed: of random noise.
          progress: shows a bar.

        Returns:
          ``B K`` sequences, in this order, named ``BEGIN_to_END_0`` and so on.

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``read``; an option that is not allowed,
            or different numbers of sequences.
        """
        from diffsda_jax.factor_moves import make_paths  # scikit-learn takes seconds to import

        first, last = (self._encoded(x, progress=progress) for x in (begin, end))
        points = make_paths(first.factors, last.factors, factor, num_points, path)
        places = [place for place in range(len(first.factors)) for _ in range(num_points)]
        ends = zip(first.outline.names, last.outline.names, strict=True)
        names = [f"{a}_to_{b}_{k}" for a, b in ends for k in range(num_points)]
        outline = first.outline
        if factor != "static":
            outline = outline.shortened(last.outline)
        outline = outline.pick(places, names)
        return self._decoded(points, outline, start, seed, progress, noise_of=places)
