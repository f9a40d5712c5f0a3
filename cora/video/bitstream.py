"""Where a decoder may begin: what the bytes of a packet say, whatever the container says of them.

A container's key flag is not decodability: under intra refresh it marks pictures that are whole only many pictures
later, and an mp4 without a list of key frames marks every picture. Knows no decoder and no container.
"""

import re
from collections.abc import Callable, Iterator


def begins(codec: str, setup: bytes) -> Callable[[bytes], bool] | None:
    """Returns whether decoding may begin with a packet, for packets of this codec; None where nothing here can tell.

    What may begin shows itself and all that is shown after it as they were meant. `setup` is the stream's extra data.
    """
    if codec in ("h264", "hevc"):
        length = _length(codec, setup)
        unit = {"h264": _begins_h264, "hevc": _begins_hevc}[codec]
        return lambda packet: any(unit(part) for part in _units(packet, length))
    return {"vp8": _begins_vp8, "vp9": _begins_vp9, "av1": _begins_av1, "mpeg4": _begins_mpeg4,
            "mpeg1video": _begins_mpeg2, "mpeg2video": _begins_mpeg2}.get(codec)


IMPOSSIBLE = re.compile(rb"\x00\x00(\x00+[^\x00\x01]|\x02)")
"""Between two marks, which zeros may go before."""


def intact(codec: str, setup: bytes) -> Callable[[bytes], bool] | None:
    """Returns whether a packet may be as it was written; None where nothing here can tell.

    Units of H.264 and HEVC hold neither 0 0 0 nor 0 0 1 nor 0 0 2, and their sizes do not exceed the packet.
    """
    if codec not in ("h264", "hevc"):
        return None
    length = _length(codec, setup)
    return lambda packet: _fits(packet, length) if length else not IMPOSSIBLE.search(packet)


def renews(codec: str, setup: bytes) -> Callable[[bytes], bool]:
    """Returns whether a packet of H.264 carries settings of its own, by which pictures may change; of any other codec
    nothing here can tell, so that every packet may."""
    if codec != "h264" or len(setup) < 5 or setup[0] != 1:
        return lambda packet: True
    return lambda packet: any(part[:1] and part[0] & 31 == 7 for part in _units(packet, _length(codec, setup)))


def _length(codec: str, setup: bytes) -> int:
    """Returns how many bytes say the size of a unit; 0 where marks stand between units instead."""
    at = {"h264": 4, "hevc": 21}[codec]
    return (setup[at] & 3) + 1 if len(setup) > at and setup[0] == 1 else 0


PADDING = 8
"""Zeros that a muxer may leave behind a unit."""


def _fits(packet: bytes, length: int) -> bool:
    place = 0
    while place + length <= len(packet):
        end = place + length + int.from_bytes(packet[place : place + length])
        whole = packet[place + length : end]
        unit = whole.rstrip(b"\0")
        if end > len(packet) or len(whole) - len(unit) > PADDING or re.search(rb"\x00\x00[\x00-\x02]", unit):
            return False
        place = end
    return True


def _units(packet: bytes, length: int) -> Iterator[bytes]:
    """Yields the units of a packet of H.264 or HEVC; each is led by `length` bytes of its size, or by 0 0 1."""
    if not length:
        yield from (part for part in packet.split(b"\0\0\1")[1:] if part)
        return
    place = 0
    while place + length < len(packet):
        end = place + length + int.from_bytes(packet[place : place + length])
        yield packet[place + length : end]
        place = end


class _Bits:
    """A reader of numbers of any width, and of Exp-Golomb codes; zeros beyond the end."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.left = int.from_bytes(data), 8 * len(data)

    def read(self, width: int) -> int:
        self.left -= width
        shifted = self.bits >> self.left if self.left >= 0 else self.bits << -self.left
        return shifted & ((1 << width) - 1)

    def golomb(self) -> int:
        zeros = 0
        while self.left > 0 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def _begins_h264(unit: bytes) -> bool:
    """An instantaneous refresh, or a recovery point that needs no picture to recover and is exact."""
    kind = unit[:1] and unit[0] & 31
    if kind != 6:
        return kind == 5
    body, place = unit[1:].replace(b"\0\0\3", b"\0\0"), 0
    while place + 1 < len(body) and body[place] != 0x80:
        form, place = _long(body, place)
        size, place = _long(body, place)
        if form == 6:
            bits = _Bits(body[place : place + size])
            return bits.golomb() == 0 and bits.read(1) == 1
        place += size
    return False


def _long(body: bytes, place: int) -> tuple[int, int]:
    """Returns a number written as a sum of bytes, all but the last 255, and the place after it."""
    total = 0
    while place < len(body) and body[place] == 255:
        total, place = total + 255, place + 1
    return total + (body[place] if place < len(body) else 0), place + 1


def _begins_hevc(unit: bytes) -> bool:
    return bool(unit) and 16 <= unit[0] >> 1 & 63 <= 21


def _begins_vp8(packet: bytes) -> bool:
    return bool(packet) and not packet[0] & 1


def _begins_vp9(packet: bytes) -> bool:
    bits = _Bits(packet[:2])
    bits.read(2)
    profile = bits.read(1) + 2 * bits.read(1)
    bits.read(profile == 3)
    return bool(packet) and bits.read(2) == 0  # neither a picture shown again nor one that needs others


def _begins_av1(packet: bytes) -> bool:
    """A key frame that is shown, with its sequence's header before it."""
    place, headed = 0, False
    while place < len(packet):
        kind, extended, sized = packet[place] >> 3 & 15, packet[place] & 4, packet[place] & 2
        place += 2 if extended else 1
        size, shift = (0, 0) if sized else (len(packet) - place, 0)
        while sized and place < len(packet):
            size |= (packet[place] & 127) << shift
            shift, place = shift + 7, place + 1
            if not packet[place - 1] & 128:
                break
        if kind in (3, 6):
            return headed and _Bits(packet[place : place + 1]).read(4) == 1
        headed |= kind == 1
        place += size
    return False


def _begins_mpeg4(packet: bytes) -> bool:
    place = packet.find(b"\0\0\1\xb6") + 4
    return 4 <= place < len(packet) and packet[place] >> 6 == 0


def _begins_mpeg2(packet: bytes) -> bool:
    place = packet.find(b"\0\0\1\0") + 5
    return 5 <= place < len(packet) and packet[place] >> 3 & 7 == 1
