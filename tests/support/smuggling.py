"""Requests that two parsers could read differently, and requests that look like them and have one meaning."""

from __future__ import annotations

CANARY = b"GET /canary HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST /case HTTP/%b\r\nHost: h\r\n%b\r\n%b" % (version, fields, body)


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def get(fields: bytes) -> bytes:
    return b"GET /case HTTP/1.1\r\n%b\r\n" % fields


REFUSED = {
    # Two readings of where the body ends
    "two different lengths": post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
    "two equal lengths": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", b"hello"),
    "length and chunked": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked and length": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked twice in one line": post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "gzip then chunked": post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "chunked then identity": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "identity": post(b"Transfer-Encoding: identity\r\n"),
    "identity and length": post(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"hello"),
    "unknown coding": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "quoted chunked": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "empty coding": post(b"Transfer-Encoding:\r\n"),
    "chunked in HTTP/1.0": post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", version=b"1.0"),
    "vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    # Lengths that are not a row of digits
    "length with plus": post(b"Content-Length: +5\r\n", b"hello"),
    "length with minus": post(b"Content-Length: -5\r\n", b"hello"),
    "length in hex": post(b"Content-Length: 0x5\r\n", b"hello"),
    "length with underscore": post(b"Content-Length: 1_0\r\n", b"hellohello"),
    "length with space inside": post(b"Content-Length: 1 0\r\n", b"hellohello"),
    "length as a float": post(b"Content-Length: 5.0\r\n", b"hello"),
    "empty length": post(b"Content-Length:\r\n"),
    "length in other digits": post(b"Content-Length: \xd9\xa5\r\n", b"hello"),
    "length of five thousand digits": post(b"Content-Length: " + b"0" * 5000 + b"5\r\n", b"hello"),
    "length beyond 64 bits": post(b"Content-Length: 18446744073709551621\r\n", b"hello"),
    # Chunks
    "chunk size with plus": chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with minus": chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with underscore": chunked(b"0_5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with space before": chunked(b" 5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with space after": chunked(b"5 \r\nhello\r\n0\r\n\r\n"),
    "empty chunk size": chunked(b"\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": chunked(b"3\r\nhello\r\n0\r\n\r\n"),
    "chunk ended by a bare LF": chunked(b"5\r\nhello\n0\r\n\r\n"),
    "chunk size ended by a bare LF": chunked(b"5\nhello\r\n0\r\n\r\n"),
    "chunk extension with a bare LF": chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with a bare CR": chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "endless chunk size": chunked(b"0" * 2000),
    "chunk size of seventeen digits": chunked(b"00000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    # Trailers
    "trailer without a colon": chunked(b"5\r\nhello\r\n0\r\nX-Name\r\n\r\n"),
    "trailer without a name": chunked(b"5\r\nhello\r\n0\r\n: value\r\n\r\n"),
    "trailer with a space before the colon": chunked(b"5\r\nhello\r\n0\r\nX-Name : value\r\n\r\n"),
    "folded trailer": chunked(b"5\r\nhello\r\n0\r\nX-Name: a\r\n b\r\n\r\n"),
    "NUL in a trailer": chunked(b"5\r\nhello\r\n0\r\nX-Name: a\x00b\r\n\r\n"),
    "bare LF in a trailer": chunked(b"5\r\nhello\r\n0\r\nX-Name: a\nb\r\n\r\n"),
    "bare CR in a trailer": chunked(b"5\r\nhello\r\n0\r\nX-Name: a\rb\r\n\r\n"),
    "trailers ended by a bare LF": chunked(b"5\r\nhello\r\n0\r\n\n"),
    "trailers ended by bare LFs": chunked(b"5\r\nhello\r\n0\r\nX-Name: a\n\n"),
    "endless trailers": chunked(b"5\r\nhello\r\n0\r\n" + b"X-Name: value\r\n" * 1000),
    "endless trailer": chunked(b"5\r\nhello\r\n0\r\nX-Name: " + b"v" * 10_000),
    # Header lines
    "space before the colon": post(b"Content-Length : 5\r\n", b"hello"),
    "tab before the colon": post(b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"),
    "folded header": get(b"Host: h\r\nX-Name: a\r\n b\r\n"),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "folded first header": get(b" Host: h\r\nHost: h\r\n"),
    "NUL in a value": get(b"Host: h\r\nX-Name: a\x00b\r\n"),
    "NUL in a name": get(b"Host: h\r\nX-Na\x00me: b\r\n"),
    "bare CR in a value": get(b"Host: h\r\nX-Name: a\rContent-Length: 5\r\n"),
    "bare LF in a value": get(b"Host: h\r\nX-Name: a\nContent-Length: 5\r\n"),
    "control character in a value": get(b"Host: h\r\nX-Name: a\x01b\r\n"),
    "no colon": get(b"Host: h\r\nX-Name\r\n"),
    "empty name": get(b"Host: h\r\n: value\r\n"),
    "space in a name": get(b"Host: h\r\nX Name: value\r\n"),
    "letter outside ASCII in a name": get(b"Host: h\r\nX-N\xc3\xa4me: value\r\n"),
    "lines ended by bare LF": b"GET /case HTTP/1.1\nHost: h\n\n",
    "last line ended by a bare LF": b"GET /case HTTP/1.1\r\nHost: h\r\n\n",
    # Host
    "no Host": get(b""),
    "two Hosts": get(b"Host: h\r\nHost: other\r\n"),
    "two equal Hosts": get(b"Host: h\r\nHost: h\r\n"),
    "two Hosts in HTTP/1.0": b"GET /case HTTP/1.0\r\nHost: h\r\nHost: other\r\n\r\n",
    "list of Hosts": get(b"Host: h, other\r\n"),
    "Host with a path": get(b"Host: h/other\r\n"),
    "Host with credentials": get(b"Host: user@h\r\n"),
    "empty Host": get(b"Host:\r\n"),
    # Request line
    "HTTP/0.9": b"GET /case\r\n",
    "HTTP/0.9 with empty line": b"GET /case\r\n\r\n",
    "HTTP/1.2": b"GET /case HTTP/1.2\r\nHost: h\r\n\r\n",
    "HTTP/2.0": b"GET /case HTTP/2.0\r\nHost: h\r\n\r\n",
    "lower-case http": b"GET /case http/1.1\r\nHost: h\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "absolute-form with another Host": b"GET http://other/case HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-form with another port": b"GET http://h:81/case HTTP/1.1\r\nHost: h:80\r\n\r\n",
    "absolute-form without Host": b"GET http://h/case HTTP/1.1\r\n\r\n",
    "absolute-form with credentials": b"GET http://user@h/case HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-form without a host": b"GET http:///case HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-form with a fragment": b"GET http://h#/case HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-form of another scheme": b"GET ftp://h/case HTTP/1.1\r\nHost: h\r\n\r\n",
    "authority-form": b"CONNECT other:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    "asterisk-form": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "relative target": b"GET case HTTP/1.1\r\nHost: h\r\n\r\n",
    "two spaces": b"GET  /case HTTP/1.1\r\nHost: h\r\n\r\n",
    "tab between": b"GET\t/case HTTP/1.1\r\nHost: h\r\n\r\n",
    "space before the method": b" GET /case HTTP/1.1\r\nHost: h\r\n\r\n",
    "space after the version": b"GET /case HTTP/1.1 \r\nHost: h\r\n\r\n",
    "space in the target": b"GET /ca se HTTP/1.1\r\nHost: h\r\n\r\n",
    "NUL in the target": b"GET /ca\x00se HTTP/1.1\r\nHost: h\r\n\r\n",
    "bare CR in the target": b"GET /ca\rse HTTP/1.1\r\nHost: h\r\n\r\n",
    "byte above ASCII in the target": b"GET /ca\xffse HTTP/1.1\r\nHost: h\r\n\r\n",
    "DEL in the target": b"GET /ca\x7fse HTTP/1.1\r\nHost: h\r\n\r\n",
    "method that is no token": b"GE(T /case HTTP/1.1\r\nHost: h\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET /case HTTP/1.1\r\nHost: h\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "headers without end": get(b"Host: h\r\n" + b"X-Name: value\r\n" * 2000),
    "one endless header": get(b"Host: h\r\nX-Name: " + b"v" * 20_000 + b"\r\n"),
    "a thousand headers": get(b"Host: h\r\n" + b"a:b\r\n" * 1000),
}

READ = {
    "length": (post(b"Content-Length: 5\r\n", b"hello"), b"hello"),
    "length with leading zeros": (post(b"Content-Length: 0005\r\n", b"hello"), b"hello"),
    "length with spaces around": (post(b"Content-Length: \t 5 \t\r\n", b"hello"), b"hello"),
    "length of a GET": (b"GET /case HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "no length": (post(b""), b""),
    "length zero": (post(b"Content-Length: 0\r\n"), b""),
    "length that another header hides": (post(b"Content_Length: 3\r\nContent-Length: 5\r\n", b"hello"), b"hello"),
    "body that looks like a request": (post(b"Content-Length: %d\r\n" % len(CANARY), CANARY), CANARY),
    "chunks": (chunked(b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"), b"hello"),
    "chunks in capitals": (post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"5\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "chunk size with leading zeros": (chunked(b"00005\r\nhello\r\n000\r\n\r\n"), b"hello"),
    "chunk extension": (chunked(b'5;name="value"\r\nhello\r\n0;last\r\n\r\n'), b"hello"),
    "chunks with trailers": (chunked(b"5\r\nhello\r\n0\r\nContent-Length: 50\r\nHost: x\r\n\r\n"), b"hello"),
    "chunk that looks like an end": (chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), b"0\r\n\r\n"),
    "one empty line first": (b"\r\n" + post(b"Content-Length: 5\r\n", b"hello"), b"hello"),
    "absolute-form": (b"POST http://h/case HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "absolute-form in capitals": (b"POST HTTPS://H/case HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "absolute-form in HTTP/1.1 with a query": (b"POST http://h/case?a=/b HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "trailer without a value": (chunked(b"5\r\nhello\r\n0\r\nX-Name:\r\n\r\n"), b"hello"),
    "no space after the colon": (post(b"Content-Length:5\r\n", b"hello"), b"hello"),
    "h2c upgrade": (
        post(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        b"",
    ),
    "target that ends in HTTP/1.1": (b"POST /case?%20HTTP/1.1 HTTP/1.1\r\nHost: h\r\n\r\n", b""),
}
