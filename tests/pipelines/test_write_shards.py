"""The command as a person starts it."""

import numpy as np
import programs


def run(*arguments, status=0):
    done = programs.run(
        "-m", "pipelines.write_shards", *arguments, environment={"TF_CPP_MIN_LOG_LEVEL": "2"}
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_shards_are_written_and_damage_is_found(tmp_path):
    folder = tmp_path / "shards"
    written = run(f"--output_dir={folder}", "--examples_per_shard=1000")
    assert "train: 920 images in 1 array_record shards" in written
    assert "test: 2,000 images in 2 array_record shards" in written
    shard = folder / "test-00001-of-00002.array_record"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    message = run(f"--output_dir={folder}", "--verify", status=1)
    assert "1 files are damaged" in message and shard.name in message
    assert "Traceback" not in message


def test_features_are_refused_with_the_reason(tmp_path):
    np.savez(
        tmp_path / "examples.npz",
        features=np.eye(4, dtype=np.float32),
        labels=np.array([[1, 0], [0, 1], [1, 0], [0, 1]]),
        split=np.array(["train", "train", "test", "test"]),
        class_names=np.array(["cat", "dog"]),
    )
    folder = tmp_path / "shards"
    message = run(
        f"--output_dir={folder}",
        "--dataset=features",
        f"--examples={tmp_path / 'examples.npz'}",
        status=1,
    )
    assert "the split train holds features, and shards hold the bytes of images" in message
    assert "Traceback" not in message and not folder.exists()
