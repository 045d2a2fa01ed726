"""Models of one code version share a process, and nothing else."""

import pytest

from tests.contract.packages import DOUBLE, config
from tests.instance.workers.conftest import Hotel, MakeHotel, call, numbers

pytestmark = pytest.mark.slow

# Tries to leave something for the other: module globals of the model, of a sibling, of a sub-package, by lazy and dynamic imports, pickles.
GOSSIP = """
    import importlib, pickle, sys
    import numpy as np
    import triton_python_backend_utils as pb_utils
    import sibling
    from parts import cellar
    from parts.cellar import STORE

    SEEN = []

    class TritonPythonModel:
        def initialize(self, args):
            self.secret = float(open(args["model_repository"] + "/1/number.txt").read())

        def execute(self, requests):
            import late
            dynamic = importlib.import_module("parts.attic")
            pickled = pickle.loads(pickle.dumps(sibling.Note(self.secret)))
            places = (SEEN, sibling.SEEN, STORE, cellar.STORE, late.SEEN, dynamic.SEEN, type(pickled).SEEN)
            for place in places:
                place.append(self.secret)
            found = {value for place in places for value in place}
            found |= {v for m in list(sys.modules.values()) for v in getattr(m, "SEEN", ())}
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([sorted(found)], np.float32))]) for _ in requests]
"""
FILES = {
    "sibling.py": "SEEN = []\nclass Note:\n    SEEN = SEEN\n    def __init__(self, value):\n        self.value = value\n",
    "parts/__init__.py": "",
    "parts/cellar.py": "STORE = []\n",
    "parts/attic.py": "SEEN = []\n",
    "late.py": "SEEN = []\n",
}


async def test_globals_of_models_and_their_siblings_never_mix(hotel: Hotel) -> None:
    first = await hotel.load_code(GOSSIP, files={**FILES, "number.txt": "11"})
    second = await hotel.load_code(GOSSIP, files={**FILES, "number.txt": "22"})
    assert hotel.workers == 1
    for _ in range(3):
        assert numbers(await first.infer(call(0))) == [11]
        assert numbers(await second.infer(call(0))) == [22]


async def test_imports_in_threads_find_their_own_models_modules(hotel: Hotel) -> None:
    code = """
        import threading
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                found = []
                def look():
                    import late
                    found.append(late.NUMBER)
                thread = threading.Thread(target=look)
                thread.start()
                thread.join()
                return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([found], np.float32))]) for _ in requests]
    """
    late = "import os\nNUMBER = float(open(os.path.join(os.path.dirname(__file__), 'number.txt')).read())\n"
    first = await hotel.load_code(code, files={"late.py": late, "number.txt": "1"})
    second = await hotel.load_code(code, files={"late.py": late, "number.txt": "2"})
    assert numbers(await first.infer(call(0))) == [1]
    assert numbers(await second.infer(call(0))) == [2]


async def test_other_code_has_other_workers_and_weights_do_not_count_as_code(hotel: Hotel) -> None:
    await hotel.load_code(DOUBLE, files={"weights.bin": "1"})
    await hotel.load_code(DOUBLE, files={"weights.bin": "2"})
    assert hotel.workers == 1
    await hotel.load_code(DOUBLE + "\n    # another version\n")
    assert hotel.workers == 2
    assert hotel.backend.pool.statistics()["code_versions"] == 2


async def test_a_package_may_ask_for_a_worker_of_its_own(hotel: Hotel) -> None:
    alone = 'parameters { key: "FLATSHARE_OWN_WORKER" value { string_value: "true" } }'
    own = config(more=f'backend: "python" max_batch_size: 4 {alone}')
    await hotel.load_code(DOUBLE)
    await hotel.load_code(DOUBLE, settings=own)
    await hotel.load_code(DOUBLE, settings=own)
    assert hotel.workers == 3


async def test_a_models_environment_holds_no_secrets_and_nothing_of_the_server(hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("MY_TOKEN", "x")
    monkeypatch.setenv("MY_FLAG", "x")
    code = """
        import os
        import numpy as np
        import triton_python_backend_utils as pb_utils
        try:
            import flatshare.instance
            seen = 1
        except ImportError:
            seen = 0

        class TritonPythonModel:
            def execute(self, requests):
                known = [float(name in os.environ) for name in ("AWS_SECRET_ACCESS_KEY", "MY_TOKEN", "MY_FLAG")]
                return [pb_utils.InferenceResponse([pb_utils.Tensor("B", np.array([[seen, *known]], np.float32))]) for _ in requests]
    """
    model = await hotel.load_code(code)
    assert numbers(await model.infer(call(0))) == [0, 0, 0, 1]


async def test_the_last_model_takes_its_workers_along_and_a_spare_stays(make_hotel: MakeHotel) -> None:
    hotel = await make_hotel(has_spare=True)
    model = await hotel.load_code(DOUBLE)
    await model.infer(call(1))
    await model.close()
    assert hotel.backend.pool.statistics()["code_versions"] == 0
    assert hotel.workers <= 1
