"""What a run's record says."""

import hashlib

from helpers import record_of

from cifar_resnet.data import Synthetic


def test_the_record_counts_training_flops(trained):
    record = record_of(trained)
    images = 2 * (200 // 40) * 40
    assert record["training_flops"] == 6 * record["macs"] * images


def test_the_record_tells_which_images_the_test_was_on(trained):
    images, labels = Synthetic(num_train=240, num_test=50).read(train=False)
    record = record_of(trained)
    assert record["num_tested"] == 50
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    assert record["test_hash"] == hashlib.sha256(pixels + labels.numpy().tobytes()).hexdigest()[:16]
    data = Synthetic(num_train=240, num_test=50, num_val=40, batch_size=40)
    data.load()
    assert record["train_hash"] == data.train_hash
