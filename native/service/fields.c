// SPDX-License-Identifier: Apache-2.0
// Reads what the requests of both gRPC doors hold. A message of ours that comes twice is refused, never merged.
#include <errno.h>
#include <string.h>

#include "fields.h"

bool fields_equal(struct idm_bytes bytes, const char *text)
{
	return bytes.size == strlen(text) && !memcmp(bytes.ptr, text, bytes.size);
}

int fields_each(struct idm_bytes message, field_fn fn, void *into)
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

int fields_pair(struct idm_bytes message, struct pair *ret)
{
	memset(ret, 0, sizeof(*ret));
	return fields_each(message, read_pair_field, ret);
}

// As Envoy tells them: application/grpc, perhaps with a message format; gRPC-Web is plain HTTP.
static bool is_grpc(struct idm_bytes type)
{
	return type.size >= 16 && !memcmp(type.ptr, "application/grpc", 16) && (type.size == 16 || type.ptr[16] == '+');
}

static void note_header(struct request *request, const struct idm_header_line *line)
{
	if (line->name.size == 12 && fields_equal(line->name, "content-type"))
		request->grpc |= is_grpc(line->value);
	else if (line->name.size == 11 && fields_equal(line->name, "traceparent"))
		request->traceparent = line->value;
}

int fields_add_header(struct request *request, const struct pair *pair)
{
	struct idm_header_line *line;

	if (request->http.header_count == REQUEST_HEADERS_MAX)
		return -EINVAL;
	line = &request->headers[request->http.header_count++];
	line->name = pair->key;
	line->value = pair_value(pair);
	note_header(request, line);
	return 0;
}

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

int fields_value(struct idm_bytes message, struct value *ret)
{
	memset(ret, 0, sizeof(*ret));
	return fields_each(message, read_value_field, ret);
}

int fields_whole(const struct value *value, uint64_t max, uint64_t *ret)
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

struct struct_reader {
	value_fn fn;
	void *into;
};

// google.protobuf.Struct: fields 1, a map.
static int read_struct_field(const struct wire_field *field, void *into)
{
	const struct struct_reader *reader = into;
	struct value value;
	struct pair pair;

	if (!wire_is(field, 1))
		return 0;
	if (fields_pair(field->bytes, &pair) || fields_value(pair.value, &value))
		return -EINVAL;
	return reader->fn(pair.key, &value, reader->into);
}

int fields_struct(struct idm_bytes entry, const char *name, value_fn fn, bool *present, void *into)
{
	struct struct_reader reader = { fn, into };
	struct pair pair;

	if (fields_pair(entry, &pair))
		return -EINVAL;
	if (!fields_equal(pair.key, name))
		return 0;
	if (*present)
		return -EINVAL;
	*present = true;
	return fields_each(pair.value, read_struct_field, &reader);
}

static int set_metadata(struct idm_bytes key, const struct value *value, void *into)
{
	struct request_metadata *metadata = into;
	uint64_t number;

	if (fields_equal(key, "address")) {
		metadata->address = value->text;
	} else if (fields_equal(key, "local")) {
		metadata->local = value->text;
	} else if (fields_equal(key, "identity")) {
		if (fields_whole(value, UINT32_MAX, &number))
			return -EINVAL;
		metadata->identity = number;
		metadata->has_identity = true;
	} else if (fields_equal(key, "evidence")) {
		if (fields_whole(value, 7, &number))
			return -EINVAL;
		metadata->evidence = number;
	} else if (fields_equal(key, "domain")) {
		return fields_whole(value, UINT64_MAX, &metadata->domain);
	} else if (fields_equal(key, "expiry_ms")) {
		return fields_whole(value, UINT64_MAX, &metadata->expiry_ms);
	}
	return 0;
}

// core.v3.Metadata: filter_metadata 1, a map of Structs.
static int read_metadata_field(const struct wire_field *field, void *into)
{
	struct request_metadata *metadata = into;

	return wire_is(field, 1) ? fields_struct(field->bytes, "idmesh", set_metadata, &metadata->present, into) : 0;
}

int fields_metadata(struct idm_bytes message, struct request_metadata *ret)
{
	return fields_each(message, read_metadata_field, ret);
}
