import subprocess

import pytest
from launch_stubs import AWKWARD, CHIPS, GIN, SLICE, Stubs, pasted

REQUEST, NODES, SSH_TRAIN = "queued-resources list", "tpu-vm list", "tpu_vm_worker.sh train"
CREATE, DELETE = "queued-resources create", "queued-resources delete"


@pytest.fixture
def stubs(tmp_path):
    """The cloud, in which nothing is there yet and everything succeeds."""
    stubs = Stubs(tmp_path / "stubs", "gcloud", "kubectl", "python", "git", "sleep")
    stubs.answer("buckets describe", 1)
    stubs.answer(REQUEST, "", "ACTIVE")
    stubs.answer(NODES, "READY")
    return stubs


def arguments_of(call):
    """What stands behind the program's name and --command."""
    return [a for a in call if a.startswith("--")]


def test_a_run_goes_from_the_plan_to_the_return_of_the_slice(stubs):
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == 0, done.stderr
    steps = [
        "python -m clp_jax.plan", "git archive", "buckets describe", "buckets create", REQUEST,
        CREATE, "sleep", REQUEST, NODES, "tpu-vm scp", "tpu_vm_worker.sh prepare", SSH_TRAIN,
        DELETE,
    ]  # fmt: skip
    assert len(stubs.calls) == len(steps)
    for call, step in zip(stubs.calls, steps, strict=True):
        assert step in " ".join(call)
    plan, archive, _, bucket, _, create, *_ = stubs.calls
    assert plan[3:] == [*GIN, "--gin.MODEL_DIR='/gcs/run-1'", "--topology=v5e:4x4"]
    assert bucket == [
        "gcloud", "storage", "buckets", "create", "gs://buck", "--project=proj",
        "--location=us-west4", "--uniform-bucket-level-access", "--enable-hierarchical-namespace",
    ]  # fmt: skip
    assert create[5:] == [
        "run-1", "--node-id=run-1", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--project=proj", "--zone=us-west4-a",
    ]  # fmt: skip
    copy_call, prepare, train = stubs.calls[9:12]
    packed = f"{stubs.folder}/clp-jax-run-1.tar.gz"
    assert archive == ["git", "archive", "--format=tar.gz", f"--output={packed}", "HEAD"]
    assert copy_call[5:8] == ["launch/tpu_vm_worker.sh", packed, "run-1:"]
    for call in (copy_call, prepare, train):
        assert {"--worker=all", "--project=proj", "--zone=us-west4-a"} <= set(arguments_of(call))
    assert stubs.remote_arguments(prepare) == ["prepare", "buck", "archive", "clp-jax-run-1.tar.gz"]
    assert stubs.remote_arguments(train) == [
        "train", "run-1", *GIN, "--gin.MODEL_DIR='/gcs/run-1'", "--multihost",
    ]  # fmt: skip
    assert "--force" in stubs.calls[-1]


@pytest.mark.parametrize("topology", CHIPS)
def test_each_shape_has_its_accelerator_type(topology, stubs):
    done = stubs.run("tpu_vm.sh", *SLICE, f"--topology={topology}", "--dry_run", "--", *GIN)
    assert f"--accelerator-type=v5litepod-{CHIPS[topology]} " in done.stdout
    assert f"--topology=v5e:{topology}\n" in done.stdout


@pytest.mark.parametrize("flags", [(), ("--spot", "--service_account=a@b.c", "--topology=8x8")])
def test_a_dry_run_prints_what_a_run_does_and_runs_nothing(flags, stubs):
    command = (*SLICE, *flags, "--", *GIN, *AWKWARD[:3], *AWKWARD[4:])
    dry = stubs.run("tpu_vm.sh", "--dry_run", *command)
    assert dry.returncode == 0
    assert stubs.calls == []
    assert dry.stderr == ""
    assert stubs.run("tpu_vm.sh", *command).returncode == 0
    assert pasted(dry.stdout) == [call for call in stubs.calls if call[0] != "sleep"]


def test_a_dry_run_can_be_pasted_into_a_shell(stubs):
    dry = stubs.run("tpu_vm.sh", "--dry_run", *SLICE, "--", *GIN, *AWKWARD)
    (stubs.folder / "calls").write_text("")
    # The slice's state, and that the bucket is missing, do not matter to a script without `set -e`.
    subprocess.run(["sh", "-c", dry.stdout], env=stubs.environment, cwd=stubs.folder, check=True)
    pasted_calls = stubs.calls
    stubs.run("tpu_vm.sh", *SLICE, "--", *GIN, *AWKWARD)
    assert pasted_calls == [call for call in stubs.calls if call[0] != "sleep"]


def test_arguments_reach_the_training_as_they_were_given(stubs):
    stubs.run("tpu_vm.sh", *SLICE, "--", *AWKWARD)
    (train,) = stubs.calls_with(SSH_TRAIN)
    assert stubs.remote_arguments(train)[2:-2] == list(AWKWARD)
    (plan,) = stubs.calls_with("clp_jax.plan")
    assert plan[3:-2] == list(AWKWARD)


def test_a_model_dir_of_the_user_stays(stubs):
    stubs.run("tpu_vm.sh", *SLICE, "--", "--gin.MODEL_DIR='/gcs/other/place'")
    (train,) = stubs.calls_with(SSH_TRAIN)
    assert stubs.remote_arguments(train)[2:] == [
        "--gin.MODEL_DIR='/gcs/other/place'",
        "--multihost",
    ]


@pytest.mark.parametrize("code", [1, 2])
def test_nothing_is_created_for_a_run_that_does_not_pass_its_plan(code, stubs):
    stubs.answer("clp_jax.plan", code)
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == code
    assert [call[0] for call in stubs.calls] == ["python"]
    assert "nothing was created" in done.stderr


def test_the_plan_can_be_skipped(stubs):
    assert stubs.run("tpu_vm.sh", *SLICE, "--skip_plan", "--", *GIN).returncode == 0
    assert stubs.calls_with("clp_jax.plan") == []
    assert stubs.calls_with(SSH_TRAIN)


def test_code_that_cannot_be_packed_is_noticed_before_anything_is_rented(stubs):
    stubs.answer("git archive", 128)
    assert stubs.run("tpu_vm.sh", *SLICE, "--revision=gone", "--", *GIN).returncode == 128
    assert stubs.calls_with("gcloud") == []


def test_code_from_a_repository(stubs):
    url = ("--git_url=https://example.com/a b.git", "--revision=v1")
    assert stubs.run("tpu_vm.sh", *SLICE, *url, "--", *GIN).returncode == 0
    assert stubs.calls_with("git archive") == []
    (prepare,) = stubs.calls_with("tpu_vm_worker.sh prepare")
    expected = ["prepare", "buck", "git", "https://example.com/a b.git", "v1"]
    assert stubs.remote_arguments(prepare) == expected


def test_spot_is_asked_for_when_it_is_wanted(stubs):
    stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert "--spot" not in stubs.calls_with(CREATE)[0]
    stubs.run("tpu_vm.sh", *SLICE, "--spot", "--", *GIN)
    assert "--spot" in stubs.calls_with(CREATE)[0]


def test_a_bucket_and_a_slice_that_are_there_are_used(stubs):
    stubs.answer("buckets describe", "buck")
    stubs.answer(REQUEST, "ACTIVE")
    assert stubs.run("tpu_vm.sh", *SLICE, "--", *GIN).returncode == 0
    assert stubs.calls_with("buckets create") == []
    assert stubs.calls_with(CREATE) == []
    assert stubs.calls_with(SSH_TRAIN)


def test_nothing_is_rented_without_a_bucket(stubs):
    stubs.answer("buckets create", 1)
    assert stubs.run("tpu_vm.sh", *SLICE, "--", *GIN).returncode == 1
    assert stubs.calls_with("tpus") == []


def test_it_waits_for_the_request_and_for_its_machines(stubs):
    stubs.answer(REQUEST, "", "WAITING_FOR_RESOURCES", 1, "PROVISIONING", "ACTIVE")
    stubs.answer(NODES, "CREATING", "READY")
    done = stubs.run("tpu_vm.sh", *SLICE, "--poll_seconds=7", "--", *GIN)
    assert done.returncode == 0, done.stderr
    assert stubs.calls_with("sleep") == [["sleep", "7"]] * 5
    for state in (
        "ABSENT",
        "WAITING_FOR_RESOURCES",
        "UNKNOWN",
        "PROVISIONING",
        "CREATING",
        "READY",
    ):
        assert f"the slice run-1 is {state}\n" in done.stderr
    assert len(stubs.calls_with(CREATE)) == 1


def test_waiting_is_bounded_and_the_request_is_withdrawn(stubs):
    stubs.answer(REQUEST, "", "WAITING_FOR_RESOURCES")
    flags = ("--max_wait_minutes=2", "--poll_seconds=30")
    done = stubs.run("tpu_vm.sh", *SLICE, *flags, "--", *GIN)
    assert done.returncode == 1
    assert "no slice within --max_wait_minutes=2" in done.stderr
    assert len(stubs.calls_with("sleep")) == 4
    assert DELETE in " ".join(stubs.calls[-1])


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_fails_ends_it(state, stubs):
    stubs.answer(REQUEST, "", state)
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == 1
    assert len(stubs.calls_with(CREATE)) == 1
    assert stubs.calls_with(SSH_TRAIN) == []


def test_a_state_that_cannot_be_had_ends_it(stubs):
    stubs.answer(REQUEST, 1)
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == 1
    assert len(stubs.calls_with(REQUEST)) == 10
    assert stubs.calls_with(CREATE) == []


@pytest.mark.parametrize("code", [75, 255, 1])
@pytest.mark.parametrize("taken", ["SUSPENDED", "PREEMPTED"])
def test_a_preempted_run_is_resumed_on_another_slice(code, taken, stubs):
    stubs.answer(SSH_TRAIN, code, 0)
    if taken == "SUSPENDED":
        stubs.answer(REQUEST, "", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE")
    else:
        stubs.answer(REQUEST, "", "ACTIVE", "ACTIVE", "ACTIVE", "", "ACTIVE")
        stubs.answer(NODES, "READY", "PREEMPTED", "PREEMPTED", "READY")
    # With --max_retries=0: a slice that was taken away is no failure of the training.
    done = stubs.run("tpu_vm.sh", *SLICE, "--spot", "--max_retries=0", "--", *GIN)
    assert done.returncode == 0, done.stderr
    first, second = stubs.calls_with(SSH_TRAIN)
    assert first == second
    creations = stubs.calls_with(CREATE)
    assert len(creations) == 2
    assert creations[0] == creations[1]
    assert len(stubs.calls_with(DELETE)) == 2
    assert len(stubs.calls_with("tpu_vm_worker.sh prepare")) == 2
    assert len(stubs.calls_with("clp_jax.plan")) == 1


def test_preemptions_are_bounded(stubs):
    stubs.answer(SSH_TRAIN, 75)
    stubs.answer(REQUEST, "", "ACTIVE", "SUSPENDED", "SUSPENDED", "", "ACTIVE", "SUSPENDED")
    done = stubs.run("tpu_vm.sh", *SLICE, "--spot", "--max_preemptions=1", "--", *GIN)
    assert done.returncode == 1
    assert "more than --max_preemptions=1 times" in done.stderr
    assert len(stubs.calls_with(SSH_TRAIN)) == 2


@pytest.mark.parametrize("code", [75, 255, 1, 137])
def test_a_failure_on_a_slice_that_is_there_is_tried_again_on_it(code, stubs):
    stubs.answer(SSH_TRAIN, code, 0)
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == 0, done.stderr
    assert len(stubs.calls_with(CREATE)) == 1
    assert len(stubs.calls_with(SSH_TRAIN)) == 2
    assert len(stubs.calls_with("tpu_vm_worker.sh prepare")) == 2


@pytest.mark.parametrize("code", [75, 134])
def test_retries_are_bounded(code, stubs):
    stubs.answer(SSH_TRAIN, code)
    done = stubs.run("tpu_vm.sh", *SLICE, "--max_retries=2", "--", *GIN)
    assert done.returncode == code
    assert "failed more than --max_retries=2 times" in done.stderr
    assert len(stubs.calls_with(SSH_TRAIN)) == 3
    assert DELETE in " ".join(stubs.calls[-1])


def test_an_installation_that_fails_is_tried_again_within_bounds(stubs):
    stubs.answer("tpu_vm_worker.sh prepare", 2)
    assert stubs.run("tpu_vm.sh", *SLICE, "--max_retries=1", "--", *GIN).returncode == 1
    assert len(stubs.calls_with("tpu_vm_worker.sh prepare")) == 2
    assert stubs.calls_with(SSH_TRAIN) == []


def test_wrong_settings_are_not_tried_again(stubs):
    stubs.answer(SSH_TRAIN, 2)
    done = stubs.run("tpu_vm.sh", *SLICE, "--", *GIN)
    assert done.returncode == 2
    assert len(stubs.calls_with(SSH_TRAIN)) == 1
    assert len(stubs.calls_with(DELETE)) == 1


def test_a_slice_is_kept_when_it_shall_be(stubs):
    done = stubs.run("tpu_vm.sh", *SLICE, "--keep", "--", *GIN)
    assert done.returncode == 0
    assert stubs.calls_with(DELETE) == []
    assert "is still rented" in done.stderr


def test_status_and_delete_need_only_the_slice(stubs):
    stubs.answer(REQUEST, "ACTIVE")
    assert stubs.run("tpu_vm.sh", *SLICE[:3], "--status").stdout == "READY\n"
    assert stubs.run("tpu_vm.sh", *SLICE[:3], "--delete").returncode == 0
    assert [call[4] for call in stubs.calls] == ["delete"]
    printed = stubs.run("tpu_vm.sh", *SLICE[:3], "--delete", "--dry_run").stdout
    assert printed.startswith("gcloud compute tpus queued-resources delete run-1 ")
    assert stubs.calls == []
