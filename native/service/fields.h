/* SPDX-License-Identifier: Apache-2.0 */
/* Messages that the requests of both gRPC doors hold: headers, metadata, values. */
#ifndef IDMESH_SERVICE_FIELDS_H
#define IDMESH_SERVICE_FIELDS_H

#include <stdbool.h>
#include <stdint.h>

#include "authz_request.h"
#include "wire.h"

typedef int (*field_fn)(const struct wire_field *field, void *into);

/* Give each field of a message to a function; ends with its first answer that is not 0, or -EINVAL. */
int fields_each(struct idm_bytes message, field_fn fn, void *into);

/* A map entry, or a HeaderValue (whose raw_value is field 3). */
struct pair {
	struct idm_bytes key;
	struct idm_bytes value;
	struct idm_bytes raw;
};
int fields_pair(struct idm_bytes message, struct pair *ret);

/* google.protobuf.Value, as far as anybody here reads one. */
struct value {
	struct idm_bytes text;
	double number;
	bool has_number;
};
int fields_value(struct idm_bytes message, struct value *ret);
/* A whole number up to max from a number or from decimal text (a double holds only 53 bits). 0 or -EINVAL. */
int fields_whole(const struct value *value, uint64_t max, uint64_t *ret);

typedef int (*value_fn)(struct idm_bytes key, const struct value *value, void *into);
/**
 * Give each field of a Struct to a function, if it is the one of that name.
 * @param[in] entry Of a map of Structs.
 * @param[in,out] present That Struct was there; a second one is refused.
 */
int fields_struct(struct idm_bytes entry, const char *name, value_fn fn, bool *present, void *into);

/* core.v3.Metadata; what stands in our namespace. A second one of it is refused. */
int fields_metadata(struct idm_bytes message, struct request_metadata *ret);

/* One more header of the request; -EINVAL if there are too many. */
int fields_add_header(struct request *request, const struct pair *pair);

static inline struct idm_bytes pair_value(const struct pair *pair)
{
	return pair->raw.size ? pair->raw : pair->value;
}

bool fields_equal(struct idm_bytes bytes, const char *text);

#endif
