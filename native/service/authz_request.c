// SPDX-License-Identifier: Apache-2.0
// Walks a CheckRequest. Singular messages that come twice are refused instead of merged: Envoy never
// writes them, and merging is where two readers of the same bytes could come to differ.
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "fields.h"

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
	return wire_is(field, 1) ? fields_each(field->bytes, read_socket_field, into) : 0;
}

// AttributeContext.Peer: address 1.
static int read_peer_field(const struct wire_field *field, void *into)
{
	return wire_is(field, 1) ? fields_each(field->bytes, read_address_field, into) : 0;
}

// Pseudo headers come as fields of their own.
static int add_header(struct request *request, struct idm_bytes message)
{
	struct pair pair;

	if (fields_pair(message, &pair))
		return -EINVAL;
	return pair.key.size && pair.key.ptr[0] == ':' ? 0 : fields_add_header(request, &pair);
}

static int read_header_map_field(const struct wire_field *field, void *into)
{
	return wire_is(field, 1) ? add_header(into, field->bytes) : 0;
}

// AttributeContext.HttpRequest: method 2, headers 3, path 4, host 5, protocol 10, header_map 13.
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
	else if (wire_is(field, 10))
		request->protocol = field->bytes;
	else if (wire_is(field, 13))
		return fields_each(field->bytes, read_header_map_field, request);
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
	return fields_each(field->bytes, read_http_field, request);
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

	if (fields_pair(message, &pair))
		return -EINVAL;
	if (fields_equal(pair.key, "idmesh.destination"))
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
		return request->source.text.ptr ? -EINVAL : fields_each(field->bytes, read_peer_field, &request->source);
	case 2:
		return request->destination.text.ptr ? -EINVAL :
						       fields_each(field->bytes, read_peer_field, &request->destination);
	case 4:
		return fields_each(field->bytes, read_request_field, request);
	case 10:
		return read_extension(request, field->bytes);
	case 11:
		return fields_metadata(field->bytes, &request->metadata);
	case 12:
		request->has_sni = true;
		return fields_each(field->bytes, read_tls_field, request);
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
	if (fields_each(data, read_check_field, &attributes))
		return -EINVAL;
	return fields_each(attributes.bytes, read_attributes_field, ret);
}
