import pytest

from cifar_resnet import ranks
from cifar_resnet.errors import UsageError
from cifar_resnet.ranks import Place

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[03-05,9],other", "SLURM_NTASKS": "4",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1"}, None),  # nothing that says how many
        (TORCH, Place(3, 4, 1, "one", 29500, ranks.SOMEBODY)),
        (TORCH | {"TORCHELASTIC_RUN_ID": "x"}, Place(3, 4, 1, "one", 29500, ranks.TORCHRUN)),
        (TORCH | {"WORLD_SIZE": "1", "RANK": "0"}, None),
        (TORCH | {"LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, "one", 29500, ranks.SOMEBODY, 2)),
        (SRUN, Place(3, 4, 1, "node03", 15772, ranks.SRUN)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, Place(3, 4, 1, "node03", 15772, ranks.SRUN, 2)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1,3"}, Place(3, 4, 1, "node03", 15772, ranks.SRUN, 3)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x12)"}, Place(3, 4, 1, "node03", 15772, ranks.SRUN, 1)),
        (SRUN | {"SLURM_STEP_NUM_NODES": "1"}, Place(3, 4, 1, "127.0.0.1", 15772, ranks.SRUN)),
        (SRUN | {"MASTER_ADDR": "two", "MASTER_PORT": "5"}, Place(3, 4, 1, "two", 5, ranks.SRUN)),
        (SRUN | TORCH, Place(3, 4, 1, "one", 29500, ranks.SOMEBODY)),  # torchrun under srun
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        # a batch script's own process has been started by no srun
        ({name: value for name, value in SRUN.items() if "STEP" not in name}, None),
    ],
)
def test_the_environment_says_who_else_was_started(environment, place):
    assert ranks.given(environment) == place


@pytest.mark.parametrize(
    ("hosts", "first"), [("a", "a"), ("a,b", "a"), ("n[5-9]", "n5"), ("n[5]", "n5"), ("n[05,7-9]x,z", "n05x")]
)
def test_the_first_host_of_a_list(hosts, first):
    assert ranks.first_host(hosts) == first


def test_a_variable_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match=r"RANK must say a number .* Got 'first'"):
        ranks.given(TORCH | {"RANK": "first"})
