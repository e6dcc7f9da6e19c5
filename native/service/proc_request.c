// SPDX-License-Identifier: Apache-2.0
// Walks a ProcessingRequest. Singular messages that come twice are refused, as in authz_request.c.
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "fields.h"
#include "proc_request.h"

// The filter's own name, under which it sends what request_attributes lists.
#define FILTER "envoy.filters.http.ext_proc"
#define FULL_DUPLEX_STREAMED 4 // and GRPC, 5: Envoy forwards only what it gets back

// ProtocolConfiguration: request_body_mode 1, response_body_mode 2.
static int read_protocol_field(const struct wire_field *field, void *into)
{
	struct proc_message *message = into;

	if ((field->number == 1 || field->number == 2) && field->type == WIRE_VARINT)
		message->streams_bodies |= field->value >= FULL_DUPLEX_STREAMED;
	return 0;
}

// ProcessingRequest: the oneof 2 to 7, observability_mode 10, protocol_config 11; 8 and 9 are read with the headers.
static int read_message_field(const struct wire_field *field, void *into)
{
	struct proc_message *message = into;

	if (field->number == 10 && field->type == WIRE_VARINT)
		message->observed = field->value;
	if (field->type != WIRE_BYTES)
		return 0;
	if (field->number == 11)
		return fields_each(field->bytes, read_protocol_field, message);
	if (field->number < PROC_REQUEST_HEADERS || field->number > PROC_RESPONSE_TRAILERS)
		return 0;
	if (message->kind)
		return -EINVAL;
	message->kind = field->number;
	message->content = field->bytes;
	return 0;
}

int proc_read(struct idm_bytes data, struct proc_message *ret)
{
	*ret = (struct proc_message){ .all = data };
	return fields_each(data, read_message_field, ret) || !ret->kind ? -EINVAL : 0;
}

// ---- the request's headers ----

static int set_once(struct idm_bytes *place, struct idm_bytes value)
{
	if (place->ptr)
		return -EINVAL;
	*place = value;
	return 0;
}

static int add_pseudo(struct request *request, const struct pair *pair)
{
	if (fields_equal(pair->key, ":method"))
		return set_once(&request->http.method, pair_value(pair));
	if (fields_equal(pair->key, ":path"))
		return set_once(&request->http.path, pair_value(pair));
	if (fields_equal(pair->key, ":authority"))
		return set_once(&request->http.host, pair_value(pair));
	return 0;
}

// HeaderMap: headers 1.
static int read_header_field(const struct wire_field *field, void *into)
{
	struct pair pair;

	if (!wire_is(field, 1))
		return 0;
	if (fields_pair(field->bytes, &pair))
		return -EINVAL;
	return pair.key.size && pair.key.ptr[0] == ':' ? add_pseudo(into, &pair) : fields_add_header(into, &pair);
}

// HttpHeaders: headers 1.
static int read_headers_field(const struct wire_field *field, void *into)
{
	struct request *request = into;

	if (!wire_is(field, 1))
		return 0;
	if (request->has_http)
		return -EINVAL;
	request->has_http = true;
	return fields_each(field->bytes, read_header_field, request);
}

// "10.0.0.1:80" or "[fd00::1]:80". What is no such text (a pipe) stays whole, and is nobody's address.
static struct request_address split_address(struct idm_bytes text)
{
	struct request_address ret = { .text = text };
	size_t at = text.size;
	uint32_t port = 0;

	while (at && text.ptr[at - 1] >= '0' && text.ptr[at - 1] <= '9')
		at--;
	if (!at || text.ptr[at - 1] != ':' || at == text.size || text.size - at > 5)
		return ret;
	for (size_t i = at; i < text.size; i++)
		port = port * 10 + (uint32_t)(text.ptr[i] - '0');
	ret.text.size = at - 1;
	ret.port = port > 65535 ? 65536 : port;
	if (ret.text.size > 1 && text.ptr[0] == '[' && text.ptr[ret.text.size - 1] == ']')
		ret.text = (struct idm_bytes){ text.ptr + 1, ret.text.size - 2 };
	return ret;
}

struct attributes {
	struct request *request;
	bool source_address;
	bool present;
};

static int set_address(struct request_address *place, const struct value *value)
{
	if (place->text.ptr)
		return -EINVAL;
	*place = split_address(value->text);
	return 0;
}

static int set_attribute(struct idm_bytes key, const struct value *value, void *into)
{
	struct attributes *attributes = into;
	struct request *request = attributes->request;

	if (fields_equal(key, "source.address"))
		return attributes->source_address ? set_address(&request->source, value) : 0;
	if (fields_equal(key, "destination.address"))
		return set_address(&request->destination, value);
	if (fields_equal(key, "request.protocol"))
		return set_once(&request->protocol, value->text);
	if (!fields_equal(key, "connection.requested_server_name"))
		return 0;
	request->has_sni = true;
	return set_once(&request->sni, value->text);
}

// ProcessingRequest: metadata_context 8, attributes 9.
static int read_context_field(const struct wire_field *field, void *into)
{
	struct attributes *attributes = into;

	if (wire_is(field, 8))
		return fields_metadata(field->bytes, &attributes->request->metadata);
	if (!wire_is(field, 9))
		return 0;
	return fields_struct(field->bytes, FILTER, set_attribute, &attributes->present, attributes);
}

int proc_read_request(const struct proc_message *message, bool source_address, struct request *ret)
{
	struct attributes attributes = { .request = ret, .source_address = source_address };

	// The header array is as large as all the rest and needs no clearing.
	memset(ret, 0, offsetof(struct request, headers));
	ret->http.headers = ret->headers;
	if (fields_each(message->content, read_headers_field, ret) || !ret->http.method.size)
		return -EINVAL;
	return fields_each(message->all, read_context_field, &attributes);
}

// ---- a response's headers and trailers ----

static int read_status(const struct pair *pair, uint32_t max, uint32_t *ret)
{
	struct value value = { .text = pair_value(pair) };
	uint64_t number;

	if (fields_whole(&value, max, &number))
		return -EINVAL;
	*ret = (uint32_t)number;
	return 0;
}

// HeaderMap: headers 1. Backends write grpc-status: nonsense there is no status, not an error.
static int read_status_field(const struct wire_field *field, void *into)
{
	struct proc_response *response = into;
	struct pair pair;

	if (!wire_is(field, 1))
		return 0;
	if (fields_pair(field->bytes, &pair))
		return -EINVAL;
	if (fields_equal(pair.key, ":status"))
		return read_status(&pair, 999, &response->code);
	if (fields_equal(pair.key, "grpc-status"))
		response->has_grpc_status = !read_status(&pair, 65535, &response->grpc_status);
	return 0;
}

// HttpHeaders: headers 1, end_of_stream 3. HttpTrailers: trailers 1.
static int read_response_field(const struct wire_field *field, void *into)
{
	struct proc_response *response = into;

	if (wire_is(field, 1))
		return fields_each(field->bytes, read_status_field, response);
	if (field->number == 3 && field->type == WIRE_VARINT)
		response->is_last = field->value;
	return 0;
}

int proc_read_response(const struct proc_message *message, struct proc_response *ret)
{
	*ret = (struct proc_response){ .is_last = message->kind == PROC_RESPONSE_TRAILERS };
	return fields_each(message->content, read_response_field, ret);
}

// ---- who answered ----

struct answer {
	struct idm_bytes details;
	bool present;
};

static int set_details(struct idm_bytes key, const struct value *value, void *into)
{
	struct answer *answer = into;

	return fields_equal(key, "response.code_details") ? set_once(&answer->details, value->text) : 0;
}

static int read_own_attributes(const struct wire_field *field, void *into)
{
	struct answer *answer = into;

	return wire_is(field, 9) ? fields_struct(field->bytes, FILTER, set_details, &answer->present, answer) : 0;
}

// What the cache filter kept is an upstream's answer too.
static bool is_from_upstream(struct idm_bytes details)
{
	static const struct idm_bytes cache = BYTES("cache.");

	return fields_equal(details, "via_upstream") ||
	       (details.size >= cache.size && !memcmp(details.ptr, cache.ptr, cache.size));
}

bool proc_is_own_answer(const struct proc_message *message)
{
	struct answer answer = { 0 };

	return !fields_each(message->all, read_own_attributes, &answer) && answer.details.size &&
	       !is_from_upstream(answer.details);
}
