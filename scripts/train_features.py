"""`make features`: trains the metrics' feature network `digits-64` again and prints its accuracy.

The weights in the package came from this script. Their SHA-256 is pinned in measuring/features.py.
On another machine rounding differs, so a new training gives another network. Figures of different
networks cannot be compared.

With --check-recipe the script trains on 55,000 of the training images and prints the accuracy on
the other 5,000. The recipe was chosen in this way. The test set is used once, at the end.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import torch

from undiffuse.base import rng
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.data.loading import load_dataset
from undiffuse.measuring import features
from undiffuse.measuring.scorer import stored_scorer

SEED = 0  # of the package's network


def main() -> None:
    """Train the network, write its files into the folder of the first argument, print figures."""
    mnist = load_dataset("mnist")
    begin = time.monotonic()
    if sys.argv[1:] == ["--check-recipe"]:
        order = torch.from_numpy(rng.stream(SEED, "recipe").permutation(len(mnist)))
        network = features.train_classifier(mnist.take(order[5000:]), seed=SEED)
        right = features.correct(network, mnist.take(order[:5000]))
        print(f"held-out accuracy {right.double().mean():.2%}, {time.monotonic() - begin:.0f} s")
        return
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else Path()
    path = folder / f"{features.DIGITS_NAME}.safetensors"
    network = features.train_classifier(mnist, seed=SEED)
    save_tensors(path, *features.stored_network(network, mnist, features.DIGITS_NAME, SEED))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    test = load_dataset("mnist", split="test")
    trained = features.network_from(*load_tensors(path), shape=mnist.shape, sha256=digest)
    statistics = folder / f"{features.DIGITS_NAME}-scorer.safetensors"
    save_tensors(
        statistics, *stored_scorer(trained, trained(mnist.images)[0], trained(test.images)[0])
    )
    right = features.correct(network, test)
    print(f"{path}: {path.stat().st_size:,} bytes, {time.monotonic() - begin:.0f} s")
    print(f"test accuracy {right.double().mean():.2%}")
    print(f"sha256 {digest}")
    print(f"data {features.dataset_key(mnist)}")


if __name__ == "__main__":
    main()
