"""How a linear array shows a medium: the acquisition physics of the synthetic images.

Speckle, shadows, posterior enhancement and bright interfaces are not drawn: they follow from the medium.
Sources of the numbers and laws:
    attenuation (0.5 to 0.7 dB/cm/MHz in soft tissue), impedance: T. L. Szabo, Diagnostic Ultrasound Imaging,
        2nd ed., 2014; ICRU Report 61, 1998
    speckle: C. B. Burckhardt, IEEE Trans. Sonics Ultrason. 25, 1978; R. F. Wagner et al., ibid. 30, 1983
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, gaussian_filter1d

SOUND_SPEED = 1.54  # mm/us in soft tissue
SPECULAR = 25  # amplitude of a perfect reflector relative to the scatterers of a pixel of gland
BEAM_WIDTH = 0.35  # mm, standard deviation: it softens the sides of shadows

Array = np.ndarray


class Tissue(NamedTuple):
    """What a tissue does to sound."""

    echo: float  # echogenicity, dB relative to the gland
    attenuation: float  # one way, dB/cm/MHz
    impedance: float  # MRayl


@dataclass(frozen=True)
class Medium:
    """Acoustic properties of every pixel, in the units of Tissue."""

    echo: Array
    attenuation: Array
    impedance: Array

    @classmethod
    def uniform(cls, shape: tuple[int, ...], tissue: Tissue) -> "Medium":
        return cls(*(np.full(shape, value, np.float32) for value in tissue))

    def fill(self, weight: Array, tissue: Tissue, texture: Array | float = 0) -> None:
        """Put tissue where weight is 1 (or True), a mixture where it is between 0 and 1; texture in dB."""
        for layer, value in zip((self.echo, self.attenuation, self.impedance), tissue, strict=True):
            layer += weight * (np.float32(value) - layer)
        self.echo[:] += weight * texture


@dataclass(frozen=True)
class Scanner:
    """A linear array and its settings."""

    frequency: float = 8.0  # MHz
    cycles: float = 3.0  # length of the pulse
    f_number: float = 2.2
    focus: float = 18.0  # mm
    focal_zone: float = 14.0  # mm from the focus to where the beam is sqrt(2) times as wide
    looks: int = 1  # frames averaged by spatial compounding
    tgc: float = 0.55  # one-way attenuation that the time-gain compensation assumes, dB/cm/MHz
    noise: float = -68.0  # electronic noise before TGC, dB relative to the gland at the skin
    dynamic_range: float = 60.0  # dB
    gain: float = 0.5  # grey level, 0 to 1, of an unattenuated gland

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Scanner":
        return cls(
            frequency=rng.uniform(6.5, 9.5),
            cycles=rng.uniform(2, 3.5),
            f_number=rng.uniform(1.8, 3.2),
            focus=rng.uniform(12, 26),
            focal_zone=rng.uniform(9, 18),
            looks=int(rng.integers(1, 5)),
            tgc=rng.uniform(0.5, 0.66),
            noise=rng.uniform(-74, -62),
            dynamic_range=rng.uniform(52, 72),
            gain=rng.uniform(0.42, 0.6),
        )


def _depth(layer: Array, px: float) -> Array:
    """Depth of the rows in mm, as a column."""
    return np.arange(len(layer), dtype=np.float32)[:, None] * np.float32(px)


def point_spread(scatterers: Array, scanner: Scanner, px: float) -> Array:
    """Image the complex scatterers through the complex-envelope PSF, whose lateral width grows off focus.

    The phase of a scatterer stands for its position within a wavelength, so the PSF needs no carrier. It has
    unit energy at each depth: the mean speckle level does not depend on the resolution.
    """
    wavelength = SOUND_SPEED / scanner.frequency
    fwhm = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations
    axial = scanner.cycles * wavelength / 2 / fwhm / px  # the echo of a pulse is half as long as the pulse
    defocus = np.hypot(1, (_depth(scatterers, px) - scanner.focus) / scanner.focal_zone)
    lateral = scanner.f_number * wavelength / fwhm / px * defocus
    frequency = fft.fftfreq(scatterers.shape[1]).astype(np.float32)
    transfer = np.exp(-2 * (np.pi * lateral * frequency) ** 2) * np.sqrt(4 * np.pi * lateral * axial)
    echo = gaussian_filter1d(scatterers, axial, axis=0, mode="nearest")
    return fft.ifft(fft.fft(echo, axis=1) * transfer, axis=1)


def interfaces(impedance: Array) -> Array:
    """Reflection coefficient of the interfaces, weakened as they turn away from the beam."""
    log_impedance = np.log(impedance)
    reflection = np.tanh(np.diff(log_impedance, axis=0, append=log_impedance[-1:]) / 2)
    dz, dx = np.gradient(gaussian_filter(log_impedance, 2, mode="nearest", truncate=3))
    return reflection * (dz**2 / (dz**2 + dx**2 + 1e-12)) ** 2


def path_loss(attenuation: Array, scanner: Scanner, px: float) -> Array:
    """Two-way attenuation in dB down to each pixel."""
    loss = 2 * scanner.frequency * np.cumsum(attenuation, axis=0) * (px / 10)
    return gaussian_filter1d(loss, BEAM_WIDTH / px, axis=1, mode="nearest", truncate=3)


def envelope(medium: Medium, scanner: Scanner, px: float, rng: np.random.Generator) -> Array:
    """Detected echo amplitude after TGC, relative to the root-mean-square amplitude of unattenuated gland.

    A single look at many scatterers per resolution cell is fully developed speckle: the amplitude is Rayleigh
    distributed, with a mean of 1.91 times its standard deviation (Burckhardt 1978, Wagner et al. 1983).
    """
    amplitude = 10 ** (medium.echo / 20)
    specular = SPECULAR * interfaces(medium.impedance)
    loss = 10 ** (-path_loss(medium.attenuation, scanner, px) / 20)
    tgc = 10 ** (2 * scanner.tgc * scanner.frequency * _depth(loss, px) / 10 / 20)
    noise = 10 ** (scanner.noise / 20)

    def complex_normal() -> Array:
        parts = rng.standard_normal((*amplitude.shape, 2), np.float32) * np.float32(0.5**0.5)
        return parts.view(np.complex64)[..., 0]

    def look() -> Array:
        signal = point_spread(amplitude * complex_normal() + specular, scanner, px)
        return np.abs((signal * loss + noise * complex_normal()) * tgc)

    return sum(look() for _ in range(scanner.looks)) / scanner.looks


def log_compress(envelope: Array, scanner: Scanner) -> Array:
    """8-bit grey levels over the dynamic range."""
    level = 20 * np.log10(np.maximum(envelope, 1e-6)) / scanner.dynamic_range + scanner.gain
    return (255 * np.clip(level, 0, 1)).round().astype(np.uint8)
