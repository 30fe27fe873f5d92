# Copyright The Signet Authors.
# SPDX-License-Identifier: Apache-2.0

"""Speaks the SPIFFE Workload API by gRPC's C core, which the clients of Python, Ruby,
PHP and C++ stand on, and prints what it gets: one JSON object per line. It knows
SPIFFE_ENDPOINT_SOCKET and nothing else."""

import base64
import json
import os
import sys

import grpc

SERVICE = "/SpiffeWorkloadAPI/"
HEADER = (("workload.spiffe.io", "true"),)


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """Reads a protobuf message: its fields by number, in order."""
    found, at = {}, 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("wire type %d" % (tag & 7))
        found.setdefault(tag >> 3, []).append(value)
    return found


def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value


def say(call, **what):
    print(json.dumps(dict(what, call=call)), flush=True)


def entries(pairs):
    """Reads a map<string, bytes>."""
    read = [fields(p) for p in pairs]
    return {e[1][0].decode(): base64.b64encode(e.get(2, [b""])[0]).decode() for e in read}


def unary(channel, method, request, header=HEADER):
    try:
        return fields(channel.unary_unary(method)(request, metadata=header, timeout=20))
    except grpc.RpcError as error:
        say(method.rpartition("/")[2], code=error.code().name, details=error.details())
        return None


def first(channel, method, header=HEADER):
    try:
        return fields(next(channel.unary_stream(SERVICE + method)(b"", metadata=header, timeout=20)))
    except grpc.RpcError as error:
        say(method, code=error.code().name, details=error.details())
        return None


def main():
    with grpc.insecure_channel(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as channel:
        first(channel, "FetchX509SVID", header=())
        say("FetchX509Bundles", bundles=entries(first(channel, "FetchX509Bundles")[2]))
        say("FetchJWTBundles", bundles=entries(first(channel, "FetchJWTBundles")[1]))
        unary(channel, SERVICE + "FetchJWTSVID", field(1, b"somebody"))
        health = unary(channel, "/grpc.health.v1.Health/Check", b"", header=())
        say("Check", status=health[1][0])
        # Without an end: each renewal is a line.
        for message in channel.unary_stream(SERVICE + "FetchX509SVID")(b"", metadata=HEADER):
            svid = fields(fields(message)[1][0])
            say("FetchX509SVID", id=svid[1][0].decode(), chain=base64.b64encode(svid[2][0]).decode(),
                bundle=base64.b64encode(svid[4][0]).decode(), has_key=len(svid[3][0]) > 0)
        say("FetchX509SVID", code="OK", details="the stream ended")


try:
    main()
except grpc.RpcError as error:
    say("FetchX509SVID", code=error.code().name, details=error.details())
    sys.exit(1)
