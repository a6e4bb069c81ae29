"""What a run's record says."""

from helpers import record_of


def test_the_record_counts_training_flops(trained):
    record = record_of(trained)
    images = 2 * (200 // 40) * 40
    assert record["training_flops"] == 6 * record["macs"] * images
