"""The ``demo`` command: train a network and estimate its Hessian's density in a minute."""

from __future__ import annotations

from pathlib import Path

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.commands.density import density as compute_density
from hessian_spectrum.commands.train import folder, train
from hessian_spectrum.config import DemoConfig, DensityConfig, TrainConfig
from hessian_spectrum.distributed.world import World
from hessian_spectrum.plotting import density as plotting
from hessian_spectrum.spectral.measure import SpectralMeasure
from hessian_spectrum.storage import run_file
from hessian_spectrum.zoo import problem_loader

MODEL = "mlp-64-20-10"  # 1,510 parameters: trained and analysed in seconds


def demo(config: DemoConfig, world: World) -> None:
    """Train a small network on the shipped digits; write its density, extremes and a picture.

    Raises:
        InputError: results exist and ``config.overwrite`` is False, or there is no parent folder.
    """
    result, picture = config.out / "digits.h5", config.out / "digits.png"
    if not config.out.parent.is_dir():
        raise InputError(f"the folder {config.out.parent} does not exist; change --out")
    for path in (result, picture):
        if path.exists() and not config.overwrite:
            raise InputError(f"{path} exists; choose another --out, or use --overwrite")

    with folder(config.out):
        _demo(config, world, result, picture)


def _demo(config: DemoConfig, world: World, result: Path, picture: Path) -> None:
    print(f"1. Training {MODEL} on 1,500 real handwritten digits (8 x 8 pixels).")
    checkpoint = train(
        TrainConfig(
            model=MODEL,
            dataset="digits",
            epochs=config.epochs,
            every=config.epochs,
            seed=config.seed,
            out=config.out / "checkpoints",
            overwrite=config.overwrite,
        )
    )
    print(
        "\n2. Estimating the Hessian of its training loss, from Hessian-vector products only.",
        flush=True,
    )
    density = DensityConfig(
        model=MODEL,
        dataset="digits",
        checkpoint=checkpoint,
        dtype="float64",
        num_products=config.num_products,
        keep_state="never",
        seed=config.seed,
        out=result,
        overwrite=config.overwrite,
    )
    arguments = problem_loader.load(density)
    compute_density(problem_loader.settled(density, arguments), arguments, world)

    with run_file.open(result) as run:
        measure = run["density"]
        assert isinstance(measure, SpectralMeasure)
        plotting.save_figure(plotting.density_figure(measure, title=f"{MODEL} on digits"), picture)
    print(_explanation(measure, picture, result))


def _explanation(measure: SpectralMeasure, picture: Path, result: Path) -> str:
    low, high = measure.support
    flat = measure.mass(-0.01 * high, 0.01 * high)
    bends = "along it the loss curves down, so this is not a minimum yet"
    return f"""
3. How to read it. The Hessian has {measure.n:,} eigenvalues. Each is the curvature of the loss
   along one direction in parameter space, its eigenvector.
   - {flat:.0%} of them are smaller in magnitude than 1% of the largest: nearly flat directions.
   - A few are large (up to {high:.3g}): these sharp directions limit the learning rate.
   - The smallest is {low:.3g}: {bends if low < 0 else "the loss curves down along no direction"}.
   Picture: {picture}      Try: hessian-spectrum query {result} count {0.1 * high:.2g} inf"""
