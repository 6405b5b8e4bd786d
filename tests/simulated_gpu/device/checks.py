"""What the simulated device does, checked in a process that has two of them: test_device.py starts it."""

import pytest
import torch

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.fixture
def pinned():
    return torch.arange(1.0, 9.0).pin_memory()


@pytest.fixture
def zeros():
    """Zeros on the device, which hold once the copies of other tests are done."""
    there = torch.zeros(8, device=FIRST)
    torch.cuda.synchronize()
    return there


def test_two_devices_with_the_set_properties():
    assert torch.cuda.device_count() == 2
    for device in (FIRST, SECOND):
        assert torch.cuda.get_device_capability(device) == (8, 0)
        assert torch.cuda.mem_get_info(device)[1] == 256 << 20


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_new_memory_holds_nan(dtype):
    torch.ones(1000, device=FIRST)  # what the allocator gives again
    assert torch.empty(1000, device=FIRST, dtype=dtype).float().isnan().all()
    assert torch.empty_strided((10, 10), (1, 10), device=FIRST, dtype=dtype).float().isnan().all()


def test_operators_compute_what_the_cpu_computes():
    x, y = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    a, b = x.to(FIRST), y.to(FIRST)
    for function in (
        lambda x, y: x @ y.T,
        lambda x, y: torch.cat([x, y]).softmax(-1),
        lambda x, y: torch.add(x, y, out=torch.empty(0, device=x.device)),
        lambda x, y: x.clone().mul_(y).t().contiguous(),
        lambda x, y: x.split(3)[1].max(-1)[1],
        lambda x, y: torch.where(x > 0, x, torch.tensor(2.0)),
        lambda x, y: x[torch.tensor([2, 0])],
        lambda x, y: torch.nn.functional.scaled_dot_product_attention(x[None], y[None], y[None]),
        lambda x, y: x.to(torch.bfloat16).double(),
    ):
        result = function(a, b)
        assert result.device == FIRST
        assert torch.equal(result.cpu(), function(x, y))


def test_random_numbers_follow_the_seed():
    def draw(generator):
        return torch.randn(5, generator=generator, device=FIRST)

    generator = torch.Generator(FIRST).manual_seed(3)
    first, second = draw(generator), draw(generator)
    assert not torch.equal(first, second)
    assert torch.equal(draw(generator.manual_seed(3)), first)
    state = torch.get_rng_state()
    torch.randn(3, device=FIRST)
    assert torch.equal(torch.get_rng_state(), state), "the CPU's generator was used"


@pytest.mark.parametrize("other", ["cpu", SECOND], ids=str)
def test_tensors_of_two_devices_do_not_meet(other):
    x, y = torch.ones(3, device=FIRST), torch.ones(3, device=other)
    for function in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x.mul_(y), lambda: x[y > 0] + y):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            function()


@pytest.mark.parametrize("target", ["cpu", SECOND], ids=str)
def test_copies_between_devices(target):
    x = torch.randn(4, 5, device=FIRST)
    for source, dtype in ((x, torch.float32), (x.t(), torch.float32), (x[:, 1:3], torch.float16)):
        there = source.to(target, dtype)
        assert there.device == torch.device(target)
        assert torch.equal(there.to(FIRST), source.to(dtype))


def test_each_device_has_its_own_memory():
    def free():
        return [torch.cuda.mem_get_info(device)[0] >> 20 for device in (FIRST, SECOND)]

    torch.cuda.empty_cache()
    before = free()
    kept = torch.empty(200 << 20, dtype=torch.uint8, device=SECOND)
    assert free() == [before[0], before[1] - 200]
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 100.00 MiB. GPU 1"):
        torch.empty(100 << 20, dtype=torch.uint8, device=SECOND)
    torch.empty(100 << 20, dtype=torch.uint8, device=FIRST)
    del kept
    torch.cuda.empty_cache()
    assert free() == before


def test_a_copy_happens_when_something_waits_for_it(pinned, zeros):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        zeros.copy_(pinned, non_blocking=True)
    assert not zeros.cpu().any(), "the copy did not wait for anyone"
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(zeros.cpu(), pinned)


@pytest.mark.parametrize("wait", ["stream", "event", "device", "kernel"])
def test_what_waits_for_a_copy(pinned, zeros, wait):
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        zeros.copy_(pinned, non_blocking=True)
        event.record()
    if wait == "kernel":
        with torch.cuda.stream(side):
            assert torch.equal((zeros + 1).cpu(), pinned + 1)
        return
    {"stream": side.synchronize, "event": event.synchronize, "device": torch.cuda.synchronize}[wait]()
    assert torch.equal(zeros.cpu(), pinned)


def test_a_copy_reads_pinned_memory_late_and_pageable_memory_at_once(pinned, zeros):
    pageable, there = pinned.clone(), torch.zeros_like(zeros)
    zeros.copy_(pinned, non_blocking=True)
    there.copy_(pageable, non_blocking=True)
    pinned.zero_()
    pageable.zero_()
    assert not zeros.cpu().any()
    assert torch.equal(there.cpu(), torch.arange(1.0, 9.0))


def test_a_copy_to_pinned_memory_is_there_after_the_wait(zeros):
    back = torch.empty(8).pin_memory().fill_(5)
    back.copy_(zeros + 1, non_blocking=True)
    assert (back == 5).all()
    torch.cuda.synchronize()
    assert (back == 1).all()


def test_memory_given_to_another_stream_without_record_stream_is_overwritten(pinned):
    """The allocator gives a freed block again on its own stream, while a copy on another one is still to come."""
    side = torch.cuda.Stream()
    block = torch.zeros(8, device=FIRST)
    with torch.cuda.stream(side):
        block.copy_(pinned, non_blocking=True)
    address = block.data_ptr()
    del block
    again = torch.zeros(8, device=FIRST)
    assert again.data_ptr() == address
    torch.cuda.synchronize()
    assert torch.equal(again.cpu(), pinned)


def test_an_event_is_not_ready_before_it_is(pinned, zeros):
    with torch.cuda.stream(torch.cuda.Stream()):
        zeros.copy_(pinned, non_blocking=True)
        event = torch.cuda.current_stream().record_event()
    assert not event.query()
    assert event.query()
    assert torch.equal(zeros.cpu(), pinned)


def test_a_compiled_cuda_kernel_is_refused_by_name(capfd):
    gates, state = torch.ones(1, 4, device=FIRST), torch.ones(1, 1, device=FIRST)
    with pytest.raises(RuntimeError, match="simulated device has no such operation"):
        torch.ops.aten._thnn_fused_lstm_cell(gates, gates, state)
    assert "a compiled CUDA kernel was launched" in capfd.readouterr().err


def test_a_triton_kernel_runs_on_either_device_and_reads_no_other():
    from td_pack.kernels.int8.triton import int8_matmul, quantize_block

    x = torch.randn(2, 128, dtype=torch.bfloat16)
    on_first, on_second = quantize_block(x.to(FIRST)), quantize_block(x.to(SECOND))
    assert on_second[0].device == SECOND and torch.equal(on_first[0].cpu(), on_second[0].cpu())
    with pytest.raises(ValueError, match="runs on cuda:1 was given a tensor of cuda:0"):
        int8_matmul(*on_second, *on_first, None, out_dtype=torch.bfloat16)
