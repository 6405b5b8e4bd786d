"""Reading a file ahead: what it reads, that it stops, and that nothing is left of it."""

import os
import threading
import time

import psutil
import pytest
from td_pack.turbo_core.read_ahead import _CHUNK, HEADROOM, ReadAhead, room, total_size

SIZE = 5 * _CHUNK + 123


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"w" * SIZE)
    return path


def finished(ahead: ReadAhead) -> ReadAhead:
    ahead._thread.join(timeout=60)
    assert not ahead._thread.is_alive()
    return ahead


@pytest.mark.parametrize("limit,read", [(SIZE, SIZE), (_CHUNK + 1, _CHUNK + 1), (1, 1), (2 * SIZE, SIZE)])
def test_it_reads_up_to_the_limit(path, limit, read):
    reading = finished(ReadAhead([path], limit, headroom=0)).reading
    assert (reading.read, reading.wanted, reading.name) == (read, limit, path.name)
    assert reading.began <= reading.ended
    assert reading.cut == ("The file ended." if limit > SIZE else "")


def test_a_checkpoint_in_parts_is_read_whole(tmp_path):
    parts = [tmp_path / f"part-{i}" for i in range(3)]
    for part in parts:
        part.write_bytes(b"w" * 1000)
    reading = finished(ReadAhead(parts, 2500, headroom=0)).reading
    assert (reading.read, reading.size, reading.cut) == (2500, 3000, "")


def test_where_memory_is_short_it_reads_nothing(path):
    reading = finished(ReadAhead([path], SIZE, headroom=1 << 60)).reading
    assert (reading.read, reading.began, reading.cut) == (0, None, "Memory ran short.")


def test_stopping_leaves_no_thread_and_no_open_file(tmp_path):
    endless = tmp_path / "pipe"
    os.mkfifo(endless)
    writer = os.open(endless, os.O_RDWR)  # a reader gets what is written and then waits, as at a disk that hangs
    try:
        before, threads = psutil.Process().num_fds(), threading.active_count()
        ahead = ReadAhead([endless], 1 << 40, headroom=0)
        os.write(writer, b"x" * 100)
        while not ahead.reading.read:
            time.sleep(0.001)
        stopper = threading.Thread(target=ahead.stop)
        stopper.start()
        while not ahead._stopped.is_set():
            time.sleep(0.001)
        os.write(writer, b"x")  # the read that was under way ends
        stopper.join(timeout=60)
        assert ahead.reading.cut == "It was stopped."
        assert (psutil.Process().num_fds(), threading.active_count()) == (before, threads)
        ahead.stop()  # a second time is harmless
    finally:
        os.close(writer)


def test_a_file_that_cannot_be_read_is_no_error(tmp_path):
    reading = finished(ReadAhead([tmp_path / "gone"], 5)).reading
    assert reading.read == 0 and "No such file" in reading.cut
    assert total_size([tmp_path / "gone"]) == 0


def test_room_is_what_memory_has_beside_files_in_use():
    available = psutil.virtual_memory().available
    assert room(1000, 0, headroom=0) == 1000
    assert room(1000, available) == 0
    assert room(1 << 60, 0, HEADROOM) == pytest.approx(available - HEADROOM, abs=2e9)  # other processes come and go
