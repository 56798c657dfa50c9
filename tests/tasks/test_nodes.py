"""A stage on several machines, both of which are this one: the first writes, all compute."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.servers import free_port
from tests.toy import PROGRAM, Toy

pytestmark = pytest.mark.integration

# each process adds its number, counted from 1; what all of them found stands in the result, and the first one's threads,
# which are those of params.yaml and not Fabric's share of the cores
TOGETHER = PROGRAM.replace(
    "    read = {",
    """    import torch
    from tasks.learning import fabric_of
    fabric = fabric_of(stage.params)
    found = int(fabric.all_reduce(torch.tensor(fabric.global_rank + 1.0), reduce_op="sum"))
    read = {""",
).replace('{stage.name}({text}{value})"', '{stage.name}({text}{value}) by {found} with {torch.get_num_threads()}"')

BOTH = " by 3 with 3"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Everything is up to date; then `scratch` wants two machines of one device each."""
    toy = Toy(tmp_path_factory.mktemp("nodes") / "toy")
    toy.run("dvc", "repro")
    (toy.root / "program.py").write_text(TOGETHER)
    toy.change_param("nodes: 1", "nodes: 2")
    toy.change_param("device: auto", "device: cpu")
    toy.change_param("threads: auto ", "threads: 3 ")
    toy.env.pop("OMP_NUM_THREADS", None)
    toy.ran()
    return toy


def meeting() -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def made(toy: Toy) -> str:
    return (toy.root / "data/scratch/model.json").read_text()


def test_dvc_repro_on_the_first_and_the_stage_by_hand_on_the_other(toy: Toy) -> None:
    where = meeting()
    other = toy.start(sys.executable, "program.py", "scratch", NODE_RANK="1", **where)
    toy.run("dvc", "repro", "--single-item", "scratch", NODE_RANK="0", **where)
    said, _ = other.communicate(timeout=600)
    assert other.returncode == 0, said
    assert made(toy).endswith(BOTH) and toy.ran() == ["scratch", "scratch"]
    assert "up to date" in toy.run("dvc", "status", "scratch").stdout
    assert not list((toy.root / "data").rglob(".partial*"))


def test_torchrun_on_both_and_then_dvc_is_told(toy: Toy) -> None:
    toy.change_param("seed: 0", "seed: 1")
    (toy.root / "raw/one.txt").write_text("two")
    toy.run("dvc", "commit", "--force", "prepare")
    where = meeting()
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--master-addr", where["MASTER_ADDR"], "--master-port", where["MASTER_PORT"]),
    ]
    other = toy.start(*launch, "--node-rank", "1", "program.py", "scratch")
    toy.run(*launch, "--node-rank", "0", "program.py", "scratch")
    said, _ = other.communicate(timeout=600)
    assert other.returncode == 0, said
    assert made(toy).endswith(BOTH)
    toy.run("dvc", "commit", "--force", "scratch")
    assert "up to date" in toy.run("dvc", "status", "scratch").stdout


def test_srun_on_both_and_then_dvc_is_told(toy: Toy) -> None:
    """What SLURM would set (https://slurm.schedmd.com/srun.html, "output environment variables"), and no SLURM."""
    shutil.rmtree(toy.root / "data/scratch")
    shared = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "python", "SLURM_NODELIST": "127.0.0.1,127.0.0.2", "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    other = toy.start(sys.executable, "program.py", "scratch", SLURM_PROCID="1", SLURM_NODEID="1", **shared)
    toy.run(sys.executable, "program.py", "scratch", SLURM_PROCID="0", SLURM_NODEID="0", **shared)
    said, _ = other.communicate(timeout=600)
    assert other.returncode == 0, said
    assert made(toy).endswith(BOTH)
    toy.run("dvc", "commit", "--force", "scratch")
    assert "up to date" in toy.run("dvc", "status", "scratch").stdout


def test_a_second_node_where_none_is_asked_for_is_one_line(toy: Toy) -> None:
    one = toy.start(sys.executable, "program.py", "prepare", NODE_RANK="1")
    text = (Path(toy.root) / "params.yaml").read_text()
    said, _ = one.communicate(timeout=600)
    assert "nodes: 2" in text and one.returncode != 0 and "no MASTER_ADDR" in said
    toy.change_param("nodes: 2", "nodes: 1")
    one = toy.start(sys.executable, "program.py", "prepare", NODE_RANK="1")
    said, _ = one.communicate(timeout=600)
    assert one.returncode == 1 and "run.devices and run.nodes are 1" in said and said.count("\n") == 1
