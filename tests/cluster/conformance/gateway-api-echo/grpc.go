package main

import (
	"encoding/binary"
	"errors"
	"io"
)

// The method that clients call; one unary exchange of a message that holds text in its first field.
const grpcMethod = "/airglow.conformance.Echo/Echo"

// A longer text than this is no echo's.
const grpcMessageMax = 1 << 20

// grpcMessage frames text as gRPC's length-prefixed message (PROTOCOL-HTTP2, "Length-Prefixed-Message").
func grpcMessage(text string) []byte {
	field := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(text)))
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(field)+len(text)))
	return append(append(frame, field...), text...)
}

// grpcText reads a message that grpcMessage made.
func grpcText(body io.Reader) (string, error) {
	var prefix [5]byte
	if _, err := io.ReadFull(body, prefix[:]); err != nil {
		return "", err
	}
	length := binary.BigEndian.Uint32(prefix[1:])
	if prefix[0] != 0 || length > grpcMessageMax {
		return "", errors.New("a message that is compressed, or too long")
	}
	message := make([]byte, length)
	if _, err := io.ReadFull(body, message); err != nil {
		return "", err
	}
	if len(message) == 0 {
		return "", nil
	}
	text, read := binary.Uvarint(message[1:])
	if message[0] != 1<<3|2 || read <= 0 || uint64(len(message)-1-read) != text {
		return "", errors.New("a message that is no text")
	}
	return string(message[1+read:]), nil
}
