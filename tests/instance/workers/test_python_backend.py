"""Triton's Python backend as models use it: decoupled responses, calls of other models, DLPack, completion of the config, environments."""

import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest

from flatshare.core.call import InferCall
from flatshare.core.errors import BadPackage, ModelFailed, UnsafeArchive
from flatshare.core.tensor import DTYPES, Tensor
from tests.contract.packages import DOUBLE, config, write_model
from tests.instance.workers.conftest import Hotel, MakeHotel, call, numbers

pytestmark = pytest.mark.slow
HEAD = """
    import numpy as np
    import triton_python_backend_utils as pb_utils
"""
DECOUPLED = config(more='backend: "python" max_batch_size: 4 model_transaction_policy { decoupled: true }')


async def test_a_decoupled_model_answers_from_a_thread(hotel: Hotel) -> None:
    code = (
        HEAD
        + """
    import threading

    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                threading.Thread(target=self.answer, args=(request.get_response_sender(), request.inputs()[0].as_numpy())).start()

        def answer(self, sender, values):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("B", values + 1)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
    )
    model = await hotel.load_code(code, DECOUPLED)
    assert [numbers(await model.infer(call(n))) for n in range(5)] == [[n + 1] for n in range(5)]


@pytest.mark.parametrize("count", [0, 2])
async def test_a_call_of_a_decoupled_model_takes_exactly_one_answer(hotel: Hotel, count: int) -> None:
    code = (
        HEAD
        + f"""
    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                sender = request.get_response_sender()
                for _ in range({count}):
                    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("B", request.inputs()[0].as_numpy())]))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
    )
    model = await hotel.load_code(code, DECOUPLED)
    with pytest.raises(ModelFailed, match=f"answered {count} times"):
        await model.infer(call(1))


async def test_a_decoupled_model_that_never_ends_is_answered_for_at_the_deadline(make_hotel: MakeHotel) -> None:
    hotel = await make_hotel(run_s=1.0)
    model = await hotel.load_code(
        HEAD + "    class TritonPythonModel:\n        def execute(self, requests):\n            pass\n", DECOUPLED
    )
    with pytest.raises(ModelFailed, match="did not send its final response within 1 s"):
        await model.infer(call(1))


CALLER = (
    HEAD
    + """
    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                values = pb_utils.Tensor("A", request.inputs()[0].as_numpy())
                answer = pb_utils.InferenceRequest(model_name="NAME", requested_output_names=["B"], inputs=[values]).exec()
                if answer.has_error():
                    responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("heard: " + answer.error().message())))
                else:
                    responses.append(pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(answer, "B")]))
            return responses
"""
)
ASYNC_CALLER = (
    HEAD
    + """
    import asyncio

    class TritonPythonModel:
        async def execute(self, requests):
            async def ask(name, values):
                call = pb_utils.InferenceRequest(model_name=name, requested_output_names=["B"], inputs=[pb_utils.Tensor("A", values)])
                return (await call.async_exec()).output_tensors()[0].as_numpy()

            values = requests[0].inputs()[0].as_numpy()
            both = await asyncio.gather(ask("double", values), ask("double", values + 1))
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", both[0] + both[1])])]
"""
)


def _several(folder: Path, **codes: str) -> Path:
    """A package of several Python models; callers reach the last by name."""
    folder.mkdir(parents=True)
    for name, code in codes.items():
        write_model(folder.parent / f"{folder.name}-parts" / name, code)
        (folder.parent / f"{folder.name}-parts" / name / name).rename(folder / name)
    return folder


async def test_a_model_calls_another_of_its_package_and_hears_its_errors(hotel: Hotel) -> None:
    model = await hotel.load(_several(hotel.folder / "one", double=DOUBLE, zz=CALLER.replace("NAME", "double")))
    assert numbers(await model.infer(call(3))) == [6]
    lost = await hotel.load(_several(hotel.folder / "two", double=DOUBLE, zz=CALLER.replace("NAME", "nobody")))
    with pytest.raises(ModelFailed, match="heard: there is no model 'nobody' in this package"):
        await lost.infer(call(3))


async def test_a_model_calls_others_at_the_same_time(hotel: Hotel) -> None:
    model = await hotel.load(_several(hotel.folder / "many", double=DOUBLE, zz=ASYNC_CALLER))
    assert numbers(await model.infer(call(3))) == [14]


async def test_a_model_may_call_one_of_its_own_code_although_a_worker_runs_one_thing_at_a_time(hotel: Hotel) -> None:
    named = CALLER.replace('"NAME"', "open(__file__.replace('model.py', 'next.txt')).read()")
    code = named.replace(
        "            responses = []",
        """            if open(__file__.replace('model.py', 'next.txt')).read() == 'end':
                return [pb_utils.InferenceResponse([pb_utils.Tensor('B', r.inputs()[0].as_numpy() * 2)]) for r in requests]
            responses = []""",
    )
    folder = _several(hotel.folder / "same", aa=code, zz=code)
    (folder / "aa" / "1" / "next.txt").write_text("end")
    (folder / "zz" / "1" / "next.txt").write_text("aa")
    model = await hotel.load(folder)
    assert numbers(await model.infer(call(4))) == [8]
    assert hotel.backend.pool.statistics()["code_versions"] == 1
    assert hotel.workers == 2


async def test_a_model_that_calls_itself_is_told_so(hotel: Hotel) -> None:
    model = await hotel.load(_several(hotel.folder / "self", zz=CALLER.replace("NAME", "zz")))
    with pytest.raises(ModelFailed, match="heard: model 'zz' calls itself"):
        await model.infer(call(1))


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BF16"}))
async def test_every_type_goes_in_and_out_unchanged(hotel: Hotel, datatype: str) -> None:
    data_type = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    code = (
        HEAD
        + """
    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", r.inputs()[0].as_numpy())]) for r in requests]
    """
    )
    model = await hotel.load_code(code, config(inputs=f"A {data_type} -1", outputs=f"B {data_type} -1"))
    values = np.array([[b"a", b"", b"\xff"]], object) if datatype == "BYTES" else np.array([[0, 1, 0]]).astype(DTYPES[datatype])
    found = (await model.infer(InferCall({"A": Tensor("A", datatype, values)}))).output("B")
    assert (found.datatype, found.data.tolist()) == (datatype, values.tolist())


async def test_bfloat16_crosses_by_dlpack(hotel: Hotel) -> None:
    code = (
        HEAD
        + """
    import torch

    class TritonPythonModel:
        def execute(self, requests):
            found = [torch.utils.dlpack.from_dlpack(r.inputs()[0].to_dlpack()) for r in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("B", values * 2)]) for values in found]
    """
    )
    model = await hotel.load_code(code, config(inputs="A TYPE_BF16 -1", outputs="B TYPE_BF16 -1"))
    bits = (np.array([[1.5, -2]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    found = (await model.infer(InferCall({"A": Tensor("A", "BF16", bits)}))).output("B")
    assert (found.data.astype(np.uint32) << 16).view(np.float32).tolist() == [[3, -4]]


async def test_a_models_own_code_completes_its_config(hotel: Hotel) -> None:
    code = (
        DOUBLE
        + """
        @staticmethod
        def auto_complete_config(config):
            config.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [-1]})
            config.add_output({"name": "B", "data_type": "TYPE_FP32", "dims": [-1]})
            config.set_max_batch_size(4)
            return config
    """
    )
    model = await hotel.load_code(code, 'backend: "python"')
    assert [str(info) for info in model.signature.inputs] == ["A FP32 [-1, -1]"]
    assert numbers(await model.infer(call(2))) == [4]


async def test_a_warm_up_request_is_answered_before_the_model_counts_as_loaded(hotel: Hotel) -> None:
    warm = 'model_warmup [{ name: "w" batch_size: 2 inputs { key: "A" value { data_type: TYPE_FP32 dims: [3] zero_data: true } } }]'
    code = (
        HEAD
        + """
    class TritonPythonModel:
        seen = 0

        def execute(self, requests):
            TritonPythonModel.seen += sum(r.inputs()[0].as_numpy().shape[0] for r in requests)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full((1, 1), self.seen, np.float32))]) for _ in requests]
    """
    )
    model = await hotel.load_code(code, config(more=f'backend: "python" max_batch_size: 4 {warm}'))
    assert numbers(await model.infer(call(1))) == [3]
    with pytest.raises(ModelFailed, match="failed its warm-up request 'w'"):
        await hotel.load_code("class TritonPythonModel:\n    def execute(self, requests):\n        raise ValueError('cold')\n",
                              config(more=f'backend: "python" max_batch_size: 4 {warm}'))  # fmt: skip


async def test_requests_that_wait_together_run_together_if_the_config_says_so(hotel: Hotel) -> None:
    import asyncio

    code = (
        HEAD
        + """
    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full((1, 1), len(requests), np.float32))]) for _ in requests]
    """
    )
    batching = 'backend: "python" max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 200000 }'
    model = await hotel.load_code(code, config(more=batching))
    together = await asyncio.gather(*(model.infer(call(n)) for n in range(4)))
    assert [numbers(result) for result in together] == [[4]] * 4
    plain = await hotel.load_code(code)
    alone = await asyncio.gather(*(plain.infer(call(n)) for n in range(4)))
    assert [numbers(result) for result in alone] == [[1]] * 4


def _environment(folder: Path, *, with_link_out: bool = False) -> Path:
    """A packed environment: another Python with a package that ours has not."""
    venv.create(folder / "env", symlinks=False)
    packages = next((folder / "env").glob("lib/python*/site-packages"))
    (packages / "only_here.py").write_text("NUMBER = 42\n")
    (packages / "ours.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")  # for numpy
    for link in [path for path in (folder / "env").rglob("*") if path.is_symlink()]:
        link.unlink()  # lib64, and what leads out
    if with_link_out:
        (folder / "env" / "out").symlink_to("/etc")
    target = folder / "env.tar.gz"
    with tarfile.open(target, "w:gz") as packed:
        packed.add(folder / "env", ".")
    return target


WITH_ENVIRONMENT = config(
    more='backend: "python" max_batch_size: 4 '
    'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }'
)


async def test_a_model_brings_its_own_environment(hotel: Hotel, tmp_path: Path) -> None:
    code = (
        HEAD
        + """
    import only_here

    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.full((1, 1), only_here.NUMBER, np.float32))]) for _ in requests]
    """
    )
    folder = write_model(hotel.folder / "envy", code, WITH_ENVIRONMENT)
    _environment(tmp_path).rename(folder / "envy" / "env.tar.gz")
    assert numbers(await (await hotel.load(folder)).infer(call(0))) == [42]


async def test_an_environment_that_leads_out_of_its_folder_or_is_not_there_is_refused(hotel: Hotel, tmp_path: Path) -> None:
    folder = write_model(hotel.folder / "envy", DOUBLE, WITH_ENVIRONMENT)
    with pytest.raises(BadPackage, match="no file of the model"):
        await hotel.load(folder)
    _environment(tmp_path, with_link_out=True).rename(folder / "envy" / "env.tar.gz")
    with pytest.raises(UnsafeArchive):
        await hotel.load(folder)
