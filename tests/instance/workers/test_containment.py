"""A model that crashes, hangs, leaks, exits or floods: its caller gets an answer, the worker is replaced, nobody else notices."""

import asyncio
from typing import Any

import numpy as np
import pytest

from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput, ModelFailed, OutOfMemory, Quarantined, WorkerDied
from flatshare.core.ids import Tenant
from flatshare.core.settings import SharingSettings, TenantSettings
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from tests.contract.packages import DOUBLE
from tests.instance.workers.conftest import Hotel, MakeHotel, call, numbers

pytestmark = pytest.mark.slow

# Does what its first number says; the same code for all, so that they share a worker.
TROUBLE = """
    import ctypes, os, sys, time
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                values = request.inputs()[0].as_numpy()
                self.act(int(values[0, 0]))
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("B", values * 2)]))
            return responses

        def act(self, what):
            if what == 1:
                ctypes.string_at(0)
            elif what == 2:
                time.sleep(600)
            elif what == 3:
                ctypes.PyDLL(None).pause()
            elif what == 4:
                sys.exit(3)
            elif what == 5:
                os._exit(3)
            elif what == 6:
                raise KeyboardInterrupt
            elif what == 7:
                bytearray(2**40)
            elif what == 8:
                self.kept = getattr(self, "kept", []) + [bytearray(os.urandom(1) * 80_000_000)]
            elif what == 9:
                for _ in range(200_000):
                    print("x" * 1000)
            elif what == 10:
                os.write(1, b"y" * 300_000)
"""
CRASH, HANG, HANG_WITH_GIL, EXIT, NATIVE_EXIT, INTERRUPT, TOO_MUCH, LEAK, FLOOD, NATIVE_FLOOD = range(1, 11)


@pytest.mark.parametrize("trouble", [CRASH, NATIVE_EXIT])
async def test_a_crash_is_answered_and_the_models_of_the_worker_come_back(hotel: Hotel, trouble: int) -> None:
    bad, good = await hotel.load_code(TROUBLE), await hotel.load_code(TROUBLE)
    with pytest.raises(WorkerDied, match="brought down its worker"):
        await bad.infer(call(trouble))
    assert numbers(await good.infer(call(0, 4))) == [0, 8]
    assert numbers(await bad.infer(call(0, 5))) == [0, 10]
    assert hotel.backend.pool.statistics()["workers_ended"] == 1


async def test_a_crash_under_load_costs_only_its_own_caller_an_answer(hotel: Hotel) -> None:
    bad, good = await hotel.load_code(TROUBLE), await hotel.load_code(TROUBLE)
    others = [asyncio.create_task(good.infer(call(0, n))) for n in range(20)]
    with pytest.raises(WorkerDied):
        await bad.infer(call(CRASH))
    assert [numbers(await other) for other in others] == [[0, 2 * n] for n in range(20)]


@pytest.mark.parametrize("trouble", [HANG, HANG_WITH_GIL])
async def test_a_hang_ends_at_the_deadline_and_those_who_waited_behind_it_are_served(make_hotel: MakeHotel, trouble: int) -> None:
    hotel = await make_hotel(run_s=1.0)
    bad, good = await hotel.load_code(TROUBLE), await hotel.load_code(TROUBLE)
    stuck = asyncio.create_task(bad.infer(call(trouble)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(good.infer(call(0, 3)))
    with pytest.raises(WorkerDied, match="had not answered after 1 s"):
        await stuck
    assert numbers(await waiting) == [0, 6]


@pytest.mark.parametrize("trouble", [EXIT, INTERRUPT])
async def test_what_is_no_crash_leaves_the_worker_alive(hotel: Hotel, trouble: int) -> None:
    model = await hotel.load_code(TROUBLE)
    with pytest.raises(ModelFailed):
        await model.infer(call(trouble))
    assert numbers(await model.infer(call(0, 1))) == [0, 2]
    assert hotel.backend.pool.statistics()["workers_ended"] == 0


async def test_asking_for_more_memory_than_a_worker_may_have_is_an_error_of_the_call(hotel: Hotel) -> None:
    model = await hotel.load_code(TROUBLE)
    with pytest.raises(OutOfMemory, match="out of memory"):
        await model.infer(call(TOO_MUCH))
    assert numbers(await model.infer(call(0, 1))) == [0, 2]


async def test_a_worker_that_leaks_is_replaced_in_a_pause_and_its_models_come_back(
    make_hotel: MakeHotel, capfd: pytest.CaptureFixture[str]
) -> None:
    hotel = await make_hotel(leak_bytes=100_000_000)
    leaking, good = await hotel.load_code(TROUBLE), await hotel.load_code(TROUBLE)
    before = hotel.backend.pool.anonymous_bytes
    for _ in range(3):
        await leaking.infer(call(LEAK))
    printed = ""
    async with asyncio.timeout(60):
        while "worker_leaks" not in printed or hotel.backend.pool.anonymous_bytes - before > 100_000_000:
            assert numbers(await good.infer(call(0, 7))) == [0, 14]  # served all the time
            printed += capfd.readouterr().out
    assert numbers(await leaking.infer(call(0, 1))) == [0, 2]


@pytest.mark.parametrize("trouble", [FLOOD, NATIVE_FLOOD])
async def test_a_model_that_prints_without_end_is_cut_short_and_answers(
    hotel: Hotel, trouble: int, capfd: pytest.CaptureFixture[str]
) -> None:
    model = await hotel.load_code(TROUBLE)
    assert numbers(await model.infer(call(trouble))) == [2 * trouble]
    assert numbers(await model.infer(call(0))) == [0]
    assert len(capfd.readouterr().out) < 400_000


async def test_a_model_that_crashed_three_times_is_quarantined_with_the_reason_and_the_others_are_served(hotel: Hotel) -> None:
    bad, good = await hotel.load_code(TROUBLE), await hotel.load_code(TROUBLE)
    for _ in range(3):
        with pytest.raises(WorkerDied):
            await bad.infer(call(CRASH))
    with pytest.raises(Quarantined, match=r"3 times.*SIGSEGV.*refused for another (2\d|30) s"):
        await bad.infer(call(0))
    assert numbers(await good.infer(call(0, 4))) == [0, 8]
    assert hotel.backend.pool.statistics()["models_quarantined"] == 1


async def test_unloading_and_loading_again_does_not_end_a_quarantine(hotel: Hotel) -> None:
    bad, good = await hotel.load_code(TROUBLE, files={"id": "same"}), await hotel.load_code(TROUBLE)
    folder = hotel.folder / sorted(path.name for path in hotel.folder.iterdir())[-2]
    for _ in range(3):
        with pytest.raises(WorkerDied):
            await bad.infer(call(CRASH))
    await bad.close()
    with pytest.raises(Quarantined):
        await hotel.load(folder)
    assert numbers(await good.infer(call(0, 4))) == [0, 8]


async def test_a_model_that_crashes_while_it_is_loaded_says_so_and_leaves_the_others(hotel: Hotel) -> None:
    code = (
        TROUBLE
        + """
        def initialize(self, args):
            if open(args['model_repository'] + '/1/bad').read() == 'yes':
                ctypes.string_at(0)
    """
    )
    good = await hotel.load_code(code, files={"bad": "no"})
    with pytest.raises(WorkerDied, match="while it was loaded"):
        await hotel.load_code(code, files={"bad": "yes"})
    assert numbers(await good.infer(call(0, 4))) == [0, 8]


async def test_a_load_that_never_ends_is_over_at_its_deadline(make_hotel: MakeHotel) -> None:
    hotel = await make_hotel(load_s=1.5)
    with pytest.raises(WorkerDied, match=r"had not answered after 1\.5 s"):
        await hotel.load_code("import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(600)\n")
    assert numbers(await (await hotel.load_code(DOUBLE)).infer(call(2))) == [4]


async def test_a_caller_who_leaves_leaves_alone(hotel: Hotel) -> None:
    model = await hotel.load_code(TROUBLE)
    calls = [asyncio.create_task(model.infer(call(0, n))) for n in range(6)]
    await asyncio.sleep(0)
    calls[1].cancel()
    calls[3].cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [numbers(found[n]) for n in (0, 2, 4, 5)] == [[0, 2 * n] for n in (0, 2, 4, 5)]  # type: ignore[arg-type]  # results, since those were not cancelled
    assert all(isinstance(found[n], asyncio.CancelledError) for n in (1, 3))


async def test_a_tenant_with_many_models_does_not_hold_up_another(hotel: Hotel) -> None:
    """One worker; each of the many has requests in line when the other's arrives."""
    many = [await hotel.load_code(TROUBLE) for _ in range(8)]
    other = await hotel.load_code(TROUBLE)
    order: list[str] = []

    async def ask(model: RemoteModel, name: str) -> None:
        await model.infer(call(0), Tenant(name))
        order.append(name)

    for model in many:
        await ask(model, "many")  # whoever was served before has had something
    order.clear()
    flood = [asyncio.create_task(ask(model, "many")) for model in many for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await ask(other, "other")
    await asyncio.gather(*flood)
    assert order.index("other") <= 3


async def test_tenants_have_their_turns_by_weight(make_hotel: MakeHotel) -> None:
    """One worker that is never idle: a tenant of weight 3 has three times as much of it as one of weight 1."""
    heavy, light = Tenant("heavy"), Tenant("light")
    hotel = await make_hotel(SharingSettings(tenants={heavy: TenantSettings(weight=3.0), light: TenantSettings(weight=1.0)}))
    code = DOUBLE.replace("def execute(self, requests):", "def execute(self, requests):\n            __import__('time').sleep(0.01)")
    models = {tenant: [await hotel.load_code(code) for _ in range(4)] for tenant in (light, heavy)}
    order: list[Tenant] = []

    async def ask(model: RemoteModel, tenant: Tenant) -> None:
        await model.infer(call(0), tenant)
        order.append(tenant)

    both = [asyncio.create_task(ask(model, tenant)) for tenant in (light, heavy) for model in models[tenant] for _ in range(16)]
    await asyncio.gather(*both)
    busy = order[8:72]  # until then both have requests in line, and the beginning is taken up by those who came first
    assert 2 < busy.count(heavy) / busy.count(light) < 5


async def test_finalize_runs_at_an_unload_and_its_failure_is_not_the_callers(hotel: Hotel) -> None:
    code = (
        DOUBLE
        + """
        def initialize(self, args):
            self.folder = args['model_repository']

        def finalize(self):
            open(self.folder + '/../../finalized', 'w').write('x')
            raise ValueError('no')
    """
    )
    model = await hotel.load_code(code)
    await model.close()
    assert (hotel.store.packages.packages_dir / "finalized").exists()
    assert hotel.workers == 0


async def test_large_tensors_cross_both_ways_whole(hotel: Hotel) -> None:
    model = await hotel.load_code(DOUBLE)
    values = np.arange(3_000_000, dtype=np.float32).reshape(1, -1)
    result = await model.infer(InferCall({"A": Tensor.of("A", values)}))
    assert np.array_equal(result.output("B").data, values * 2)


async def test_what_does_not_fit_the_config_is_refused_before_the_model_sees_it(hotel: Hotel) -> None:
    model = await hotel.load_code(DOUBLE)
    wrong: list[dict[str, Any]] = [
        {},
        {"A": Tensor.of("A", np.zeros((1, 1), np.int32))},
        {"A": Tensor.of("A", np.zeros((9, 1), np.float32))},
    ]
    for inputs in wrong:
        with pytest.raises(BadInput):
            await model.infer(InferCall(inputs))
