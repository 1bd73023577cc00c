"""Requests as openpi's own client packs them, and replies as it reads them.

The bytes are what `openpi_client.msgpack_numpy.Packer().pack` of openpi-client 0.1.2 gives; its WebsocketClientPolicy
sends them as one frame. Replies are read with plain msgpack here, by the rules of its `unpack_array`.
"""

import base64

import msgpack
import numpy as np

from tests.serving import fakes
from tests.serving.fakes import HORIZON, FakePolicy, expected, raw_connection, serving

REQUEST = base64.b64decode(
    "hb1vYnNlcnZhdGlvbi9lZ29jZW50cmljX2NhbWVyYYTEC19fbmRhcnJheV9fw8QEZGF0YcQMAAECAwQFBgcICQoLxAVkdHlwZaN8dTHEBXNoYX"
    "BlkwICA7xvYnNlcnZhdGlvbi93cmlzdF9pbWFnZV9sZWZ0hMQLX19uZGFycmF5X1/DxARkYXRhxAwHBwcHBwcHBwcHBwfEBWR0eXBlo3x1McQF"
    "c2hhcGWTAgIDvW9ic2VydmF0aW9uL3dyaXN0X2ltYWdlX3JpZ2h0hMQLX19uZGFycmF5X1/DxARkYXRhxAwJCQkJCQkJCQkJCQnEBWR0eXBlo3"
    "x1McQFc2hhcGWTAgIDsW9ic2VydmF0aW9uL3N0YXRlhMQLX19uZGFycmF5X1/DxARkYXRhxPQAAAA/XI8CP7geBT8Urgc/cT0KP83MDD8pXA8/"
    "hesRP+F6FD89Chc/mpkZP/YoHD9SuB4/rkchPwrXIz9mZiY/w/UoPx+FKz97FC4/16MwPzMzMz+PwjU/7FE4P0jhOj+kcD0/AABAP1yPQj+4Hk"
    "U/FK5HP3E9Sj/NzEw/KVxPP4XrUT/helQ/PQpXP5qZWT/2KFw/UrheP65HYT8K12M/ZmZmP8P1aD8fhWs/exRuP9ejcD8zM3M/j8J1P+xReD9I"
    "4Xo/pHB9PwAAgD+uR4E/XI+CPwrXgz+4HoU/ZmaGPxSuhz/D9Yg/cT2KPx+Fiz/NzIw/xAVkdHlwZaM8ZjTEBXNoYXBlkT2mcHJvbXB0o0dvLg"
    "=="
)


def as_openpi_reads(part):
    if b"__ndarray__" in part:
        return np.ndarray(buffer=part[b"data"], dtype=np.dtype(part[b"dtype"]), shape=part[b"shape"])
    return part


def test_a_request_of_openpis_client_gets_a_chunk_that_it_can_read():
    policy = FakePolicy()
    with serving(policy) as port, raw_connection(port) as connection:
        for _ in range(2):
            connection.send(REQUEST)
            reply = msgpack.unpackb(connection.recv(10), object_hook=as_openpi_reads)
            assert sorted(reply) == ["actions", "server_timing"]
            np.testing.assert_array_equal(reply["actions"], [expected(0.5, step) for step in range(HORIZON)])
            assert all(type(value) is float for value in reply["server_timing"].values())
    assert policy.batches == [[(0.5, "Go.")]] * 2


def test_the_images_of_openpis_client_are_the_cameras():
    seen = []

    class Looking(FakePolicy):
        def prepare(self, sample):
            seen.append(sample["images"])
            return super().prepare(sample)

    with serving(Looking()) as port, raw_connection(port) as connection:
        seen.clear()
        connection.send(REQUEST)
        connection.recv(10)
    [images] = seen
    assert images.keys() == {camera.name for camera in fakes.CAMERAS}
    np.testing.assert_array_equal(images["head"], np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert (images["left_wrist"] == 7).all()
    assert (images["right_wrist"] == 9).all()
