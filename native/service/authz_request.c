// SPDX-License-Identifier: Apache-2.0
// Walks a CheckRequest. Singular messages that come twice are refused instead of merged: Envoy never
// writes them, and merging is where two readers of the same bytes could come to differ.
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "authz_request.h"
#include "wire.h"

typedef int (*field_fn)(const struct wire_field *field, void *into);

static bool equals(struct idm_bytes bytes, const char *text)
{
	return bytes.size == strlen(text) && !memcmp(bytes.ptr, text, bytes.size);
}

// Give each field of a message to a function.
static int each(struct idm_bytes message, field_fn fn, void *into)
{
	struct wire_cursor cursor = wire_open(message);
	struct wire_field field;
	int ret;

	while ((ret = wire_next(&cursor, &field)) > 0) {
		ret = fn(&field, into);
		if (ret)
			return ret;
	}
	return ret;
}

struct pair {
	struct idm_bytes key;
	struct idm_bytes value;
	struct idm_bytes raw;
};

// A map entry, or a HeaderValue (whose raw_value is field 3).
static int read_pair_field(const struct wire_field *field, void *into)
{
	struct pair *pair = into;

	if (wire_is(field, 1))
		pair->key = field->bytes;
	else if (wire_is(field, 2))
		pair->value = field->bytes;
	else if (wire_is(field, 3))
		pair->raw = field->bytes;
	return 0;
}

static int read_pair(struct idm_bytes message, struct pair *pair)
{
	memset(pair, 0, sizeof(*pair));
	return each(message, read_pair_field, pair);
}

// SocketAddress: protocol 1, address 2, port_value 3.
static int read_socket_field(const struct wire_field *field, void *into)
{
	struct request_address *address = into;

	if (wire_is(field, 2))
		address->text = field->bytes;
	else if (field->type == WIRE_VARINT && field->number == 1)
		address->udp = field->value == 1;
	else if (field->type == WIRE_VARINT && field->number == 3)
		address->port = field->value > 65535 ? 65536 : field->value;
	return 0;
}

// Address: socket_address 1; pipe and internal addresses say nothing of a peer.
static int read_address_field(const struct wire_field *field, void *into)
{
	return wire_is(field, 1) ? each(field->bytes, read_socket_field, into) : 0;
}

// AttributeContext.Peer: address 1.
static int read_peer_field(const struct wire_field *field, void *into)
{
	return wire_is(field, 1) ? each(field->bytes, read_address_field, into) : 0;
}

static int add_header(struct request *request, struct idm_bytes message)
{
	struct idm_header_line *line;
	struct pair pair;

	if (read_pair(message, &pair))
		return -EINVAL;
	if (pair.key.size && pair.key.ptr[0] == ':')
		return 0; // pseudo headers come as fields of their own
	if (request->http.header_count == REQUEST_HEADERS_MAX)
		return -EINVAL;
	line = &request->headers[request->http.header_count++];
	line->name = pair.key;
	line->value = pair.raw.size ? pair.raw : pair.value;
	return 0;
}

static int read_header_map_field(const struct wire_field *field, void *into)
{
	return wire_is(field, 1) ? add_header(into, field->bytes) : 0;
}

// AttributeContext.HttpRequest: method 2, headers 3, path 4, host 5, header_map 13.
static int read_http_field(const struct wire_field *field, void *into)
{
	struct request *request = into;

	if (wire_is(field, 2))
		request->http.method = field->bytes;
	else if (wire_is(field, 3))
		return add_header(request, field->bytes);
	else if (wire_is(field, 4))
		request->http.path = field->bytes;
	else if (wire_is(field, 5))
		request->http.host = field->bytes;
	else if (wire_is(field, 13))
		return each(field->bytes, read_header_map_field, request);
	return 0;
}

// AttributeContext.Request: http 2.
static int read_request_field(const struct wire_field *field, void *into)
{
	struct request *request = into;

	if (!wire_is(field, 2))
		return 0;
	if (request->has_http)
		return -EINVAL;
	request->has_http = true;
	return each(field->bytes, read_http_field, request);
}

struct value {
	struct idm_bytes text;
	double number;
	bool has_number;
};

// google.protobuf.Value: number_value 2, string_value 3.
static int read_value_field(const struct wire_field *field, void *into)
{
	struct value *value = into;

	if (wire_is(field, 3)) {
		value->text = field->bytes;
	} else if (field->number == 2 && field->type == WIRE_FIXED64) {
		memcpy(&value->number, &field->value, sizeof(value->number));
		value->has_number = true;
	}
	return 0;
}

// A whole number up to max from a number or from decimal text (a double holds only 53 bits).
static int whole(const struct value *value, uint64_t max, uint64_t *ret)
{
	uint64_t sum = 0;

	if (value->has_number) {
		if (!(value->number >= 0 && value->number <= 9007199254740992.0))
			return -EINVAL;
		sum = (uint64_t)value->number;
		if ((double)sum != value->number)
			return -EINVAL;
	} else {
		if (!value->text.size || value->text.size > 20)
			return -EINVAL;
		for (size_t i = 0; i < value->text.size; i++) {
			unsigned int digit = (unsigned char)value->text.ptr[i] - '0';

			if (digit > 9 || __builtin_mul_overflow(sum, 10, &sum) || __builtin_add_overflow(sum, digit, &sum))
				return -EINVAL;
		}
	}
	if (sum > max)
		return -EINVAL;
	*ret = sum;
	return 0;
}

static int set_metadata(struct request_metadata *metadata, struct idm_bytes key, const struct value *value)
{
	uint64_t number;

	if (equals(key, "address")) {
		metadata->address = value->text;
	} else if (equals(key, "local")) {
		metadata->local = value->text;
	} else if (equals(key, "identity")) {
		if (whole(value, UINT32_MAX, &number))
			return -EINVAL;
		metadata->identity = number;
		metadata->has_identity = true;
	} else if (equals(key, "evidence")) {
		if (whole(value, 7, &number))
			return -EINVAL;
		metadata->evidence = number;
	} else if (equals(key, "domain")) {
		return whole(value, UINT64_MAX, &metadata->domain);
	} else if (equals(key, "expiry_ms")) {
		return whole(value, UINT64_MAX, &metadata->expiry_ms);
	}
	return 0;
}

// google.protobuf.Struct: fields 1, a map.
static int read_struct_field(const struct wire_field *field, void *into)
{
	struct value value = { 0 };
	struct pair pair;

	if (!wire_is(field, 1))
		return 0;
	if (read_pair(field->bytes, &pair) || each(pair.value, read_value_field, &value))
		return -EINVAL;
	return set_metadata(into, pair.key, &value);
}

// core.v3.Metadata: filter_metadata 1, a map of Structs.
static int read_metadata_field(const struct wire_field *field, void *into)
{
	struct request_metadata *metadata = into;
	struct pair pair;

	if (!wire_is(field, 1))
		return 0;
	if (read_pair(field->bytes, &pair))
		return -EINVAL;
	if (!equals(pair.key, "idmesh"))
		return 0;
	if (metadata->present)
		return -EINVAL;
	metadata->present = true;
	return each(pair.value, read_struct_field, metadata);
}

// AttributeContext.TLSSession: sni 1.
static int read_tls_field(const struct wire_field *field, void *into)
{
	if (wire_is(field, 1))
		((struct request *)into)->sni = field->bytes;
	return 0;
}

static int read_extension(struct request *request, struct idm_bytes message)
{
	struct pair pair;

	if (read_pair(message, &pair))
		return -EINVAL;
	if (equals(pair.key, "idmesh.destination"))
		request->named = pair.value;
	return 0;
}

// AttributeContext: source 1, destination 2, request 4, context_extensions 10, metadata_context 11, tls_session 12.
static int read_attributes_field(const struct wire_field *field, void *into)
{
	struct request *request = into;

	if (field->type != WIRE_BYTES)
		return 0;
	switch (field->number) {
	case 1:
		return request->source.text.ptr ? -EINVAL : each(field->bytes, read_peer_field, &request->source);
	case 2:
		return request->destination.text.ptr ? -EINVAL :
						       each(field->bytes, read_peer_field, &request->destination);
	case 4:
		return each(field->bytes, read_request_field, request);
	case 10:
		return read_extension(request, field->bytes);
	case 11:
		return each(field->bytes, read_metadata_field, &request->metadata);
	case 12:
		request->has_sni = true;
		return each(field->bytes, read_tls_field, request);
	}
	return 0;
}

struct attributes {
	struct idm_bytes bytes;
	bool present;
};

// CheckRequest: attributes 1.
static int read_check_field(const struct wire_field *field, void *into)
{
	struct attributes *attributes = into;

	if (!wire_is(field, 1))
		return 0;
	if (attributes->present)
		return -EINVAL;
	attributes->bytes = field->bytes;
	attributes->present = true;
	return 0;
}

int request_read(struct idm_bytes data, struct request *ret)
{
	struct attributes attributes = { 0 };

	// The header array is as large as all the rest and needs no clearing.
	memset(ret, 0, offsetof(struct request, headers));
	ret->http.headers = ret->headers;
	if (each(data, read_check_field, &attributes))
		return -EINVAL;
	return each(attributes.bytes, read_attributes_field, ret);
}
