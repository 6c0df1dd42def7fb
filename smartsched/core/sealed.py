"""A JSON object as a line that says of itself whether it is whole: last in it is `crc`, the CRC-32
of the bytes before `,"crc"`, as eight hexadecimal digits."""

import zlib

_CRC = b',"crc":"'
_SEAL_BYTES = len(_CRC) + 8 + len(b'"}\n')


def seal(text: bytes) -> bytes:
    """The line, its end included, of an object of one field at least."""
    body = text[:-1]
    return b'%s%s%08x"}\n' % (body, _CRC, zlib.crc32(body))


def unseal(line: bytes) -> bytes | None:
    """The object, of a line with its end. None: it is not as it was written."""
    body, crc = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    return body + b"}" if crc == b'%s%08x"}\n' % (_CRC, zlib.crc32(body)) else None
