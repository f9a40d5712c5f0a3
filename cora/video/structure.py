"""Whether the parts of a container lie one after another as they should, where its demuxer would pass over damage.

FFmpeg looks for the next part that it knows and says nothing of what was lost. Knows no decoder.
"""

import mmap
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cora.video.promise import VideoError

Data = bytes | mmap.mmap
SEGMENT, CLUSTER, CRC = 0x18538067, 0x1F43B675, 0xBF
IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xEC, 0xBF, 0x5854, 0xAF}
"""Time, blocks, groups of them, sizes, places, voids, sums, silent tracks, encrypted blocks."""


def check_structure(path: Path, container: str, stream: int) -> None:
    """Raises VideoError where a part of the file is missing or begins with what no such part can begin with.

    `container` is FFmpeg's name of the format and `stream` the film's own number in it. Formats that are not looked at
    here keep a count that is compared with what is found, or have nothing by which a loss could be known.
    """
    look = next((look for name, look in LOOKS.items() if name in container), None)
    if look is None:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reason = look(data, stream)
    if reason:
        raise VideoError(path, reason)


def _cut(place: int, end: int, held: int) -> str:
    return f"is truncated: a part from byte {place} to {end}, of {held}"


def _lost(place: int) -> str:
    return f"is damaged: nothing known begins at byte {place}"


# ------------------------------------------------------------------------------------------------- Matroska and WebM


def _matroska(data: Data, stream: int) -> str:
    """Elements of a known name must follow one another; sums of clusters must be right (RFC 8794, RFC 9559)."""
    place, end = 0, len(data)
    while place < end:
        name, body, size = _element(data, place)
        if not name or (name not in IN_CLUSTER and name < 2**28):
            return _lost(place)
        if size is None or name == SEGMENT:  # written as it came, or entered
            end = end if size is None else body + size
            place = body
        elif name == CLUSTER and (reason := _cluster(data, body, body + size)):
            return reason
        else:
            place = body + size
        if max(place, end) > len(data):
            return _cut(body, max(place, end), len(data))
    return ""


def _cluster(data: Data, place: int, end: int) -> str:
    if end > len(data):
        return _cut(place, end, len(data))
    told = int.from_bytes(data[place + 2 : place + 6], "little")
    if data[place] == CRC and zlib.crc32(data[place + 6 : end]) != told:
        return f"is damaged: the sum of the cluster at byte {place} is wrong"
    while place < end:
        name, body, size = _element(data, place)
        if name not in IN_CLUSTER or size is None or body + size > end:
            return _lost(place)
        place = body + size
    return ""


def _element(data: Data, place: int) -> tuple[int, int, int | None]:
    """Returns an element's name (0: none), where its body begins, and its size (None: unknown)."""
    first = 9 - data[place].bit_length()
    middle = place + first
    if first > 4 or middle >= len(data) or not data[middle]:
        return 0, place, 0
    width = 9 - data[middle].bit_length()
    size = int.from_bytes(data[middle : middle + width]) & ((1 << 7 * width) - 1)
    unknown = size == (1 << 7 * width) - 1
    return int.from_bytes(data[place:middle]), middle + width, None if unknown else size


# ------------------------------------------------------------------------------------------------- GIF, FLV, MPEG-TS


def _gif(data: Data, stream: int) -> str:
    """Blocks up to the trailer (GIF89a, appendix A)."""
    place = 13 + _palette(data[10])
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return ""
        if kind == 0x21:
            place += 2
        elif kind == 0x2C and place + 10 < len(data):
            place += 11 + _palette(data[place + 9])
        else:
            return _lost(place)
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return "is truncated: it ends without its trailer"


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _flv(data: Data, stream: int) -> str:
    """Tags of sound, film or script, each with its size (Adobe Flash Video 10.1, annex E)."""
    told = data.find(b"filesize\0", 0, 4096)
    size = struct.unpack(">d", data[told + 9 : told + 17])[0] if told > 0 else 0.0
    if size > len(data):
        return _cut(len(data), round(size), len(data))
    place = int.from_bytes(data[5:9]) + 4
    while place + 11 <= len(data):
        if data[place] & 0x1F not in (8, 9, 18) or any(data[place + 8 : place + 11]):
            return _lost(place)
        end = place + 15 + int.from_bytes(data[place + 1 : place + 4])
        if end - 4 > len(data):
            return _cut(place, end, len(data))
        place = end
    return "" if place >= len(data) else _cut(place, place + 11, len(data))


def _avi(data: Data, stream: int) -> str:
    """Chunks, each of four letters and its size, an even number of bytes apart (AVI RIFF file reference)."""
    place = end = 0
    while place + 8 <= len(data):
        name = bytes(data[place : place + 4])
        if name == b"RIFF":
            end = place + 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        elif place >= end > 8:
            break  # what somebody wrote behind the film
        if not all(32 <= letter < 127 for letter in name):
            if not data[place - 1 : place].isalnum():
                return _lost(place)
            place -= 1  # some writers leave the odd byte out
            continue
        entered = name == b"RIFF" or (name == b"LIST" and data[place + 8 : place + 12] in (b"movi", b"rec "))
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 12 if entered else 8 + size + size % 2
    return ""


def _transport(data: Data, stream: int) -> str:
    """Packets of 188 bytes must follow one another, and units of the film begin as units do (ISO 13818-1)."""
    packets = np.frombuffer(data[: len(data) // 188 * 188], np.uint8).reshape(-1, 188)
    if (packets[:3, 0] != 0x47).any():
        return ""  # of another size
    if (packets[:, 0] != 0x47).any():
        return _lost(188 * int(np.argmax(packets[:, 0] != 0x47)))
    begins = (packets[:, 1] & 0x40 > 0) & ((packets[:, 1] & 0x1F) * np.int32(256) + packets[:, 2] == stream)
    for number in np.flatnonzero(begins & (packets[:, 3] & 0x10 > 0)):
        place = 4 + (1 + int(packets[number, 4]) if packets[number, 3] & 0x20 else 0)
        if packets[number, place : place + 3].tolist() != [0, 0, 1][: max(0, 188 - place)]:
            return _lost(188 * int(number) + place)
    return ""


# ------------------------------------------------------------------------------------------------- ASF (WMV)

PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
PACKETS = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
WIDTHS = 0, 1, 2, 4
"""Bytes of a number, by the two bits that say so."""


def _asf(data: Data, stream: int) -> str:
    """Packets of one size hold pieces of the film's pictures, numbered one by one (ASF specification, section 5)."""
    about, first = data.find(PROPERTIES), data.find(PACKETS)
    if about < 0 or first < 0:
        return ""
    number, size = (int.from_bytes(data[about + at : about + at + width], "little") for at, width in ((56, 8), (92, 4)))
    streamed = bool(data[about + 88] & 1)
    held = (len(data) - first - 50) // size if streamed else number
    if first + 50 + held * size > len(data):
        return _cut(first, first + 50 + held * size, len(data))
    before: tuple[int, int, int] | None = None  # a picture's number, how much of it is there, and its size
    for place in range(first + 50, first + 50 + held * size, size):
        pieces = _pieces(data[place : place + size])
        if pieces is None:
            return _lost(place)
        for whose, picture, offset, length, whole, turns in pieces:
            if whose != stream:
                continue
            if not whole:  # many small ones, of which less is said
                before = None
                continue
            follows = before is None or (
                picture == (before[0] + 1) % turns and before[1] == before[2] if not offset
                else (picture, offset) == before[:2])
            if not follows:
                return f"is damaged: a picture before byte {place} is incomplete"
            before = picture, offset + length, whole
    if before and before[1] != before[2]:
        return "is truncated: its last picture is incomplete"
    return ""


def _pieces(packet: bytes) -> list[tuple[int, int, int, int, int, int]] | None:
    """Returns (stream, picture, offset, length, size of the picture or 0, how many numbers there are) of each piece of
    a packet; None where they do not fill it."""
    place = 1 + (packet[0] & 15) if packet[0] & 0x80 else 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        return int.from_bytes(packet[place - width : place], "little")

    form, widths = take(1), take(1)
    take(WIDTHS[form >> 5 & 3] + WIDTHS[form >> 1 & 3])
    padding = take(WIDTHS[form >> 3 & 3])
    take(6)
    several = take(1) if form & 1 else 1
    found = []
    for _ in range(several & 0x3F):
        whose = take(1) & 0x7F
        width = WIDTHS[widths >> 4 & 3]
        picture, offset, beside = take(width), take(WIDTHS[widths >> 2 & 3]), take(WIDTHS[widths & 3])
        whole = take(4) if beside >= 8 else 0
        take(beside - 4 if beside >= 8 else beside)
        length = take(WIDTHS[several >> 6]) if form & 1 else len(packet) - padding - place
        if length <= 0 or (beside >= 8 and offset + length > whole):
            return None
        place += length
        found.append((whose, picture, offset, length, whole, 1 << 8 * width))
    return found if place + padding == len(packet) else None


LOOKS: dict[str, Callable[[Data, int], str]] = {"matroska": _matroska, "gif": _gif, "flv": _flv, "mpegts": _transport,
                                                 "asf": _asf, "avi": _avi}
