// SPDX-License-Identifier: Apache-2.0
// One request from bytes to bytes: read, judge, respond. Any failure on the way is a denial.
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "idmesh/check.h"
#include "respond.h"

#define RANDOM_POOL 4096

struct idm_checker {
	struct idm_reader *reader;
	struct name_cache names;
	size_t random_left;
	uint8_t random[RANDOM_POOL];
	struct request request;
	struct judged judged;
};

struct idm_checker *idm_checker_create(struct idm_reader *reader)
{
	struct idm_checker *checker = calloc(1, sizeof(*checker));

	if (checker)
		checker->reader = reader;
	return checker;
}

void idm_checker_destroy(struct idm_checker *checker)
{
	free(checker);
}

// A decision id only names a decision: where the kernel has no random bytes left it is zero, not a failure.
static void make_id(struct idm_checker *checker, char ret[32])
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *bytes;

	if (checker->random_left < 16) {
		if (getrandom(checker->random, sizeof(checker->random), 0) != sizeof(checker->random))
			memset(checker->random, 0, sizeof(checker->random));
		checker->random_left = sizeof(checker->random);
	}
	checker->random_left -= 16;
	bytes = checker->random + checker->random_left;
	for (int i = 0; i < 16; i++) {
		ret[2 * i] = digits[bytes[i] >> 4];
		ret[2 * i + 1] = digits[bytes[i] & 15];
	}
}

static void report(const struct idm_checker *checker, const struct idm_snapshot *snapshot,
		   struct idm_check_result *ret)
{
	const struct judged *judged = &checker->judged;
	const struct idm_verdict *verdict = judged->count ? &judged->verdicts[judged->shown] : NULL;

	ret->revision = snapshot ? idm_snapshot_revision(snapshot) : 0;
	ret->source_identity = judged->source.identity;
	ret->destination_identity = judged->destination.identity;
	ret->entry = verdict ? verdict->entry : IDM_NONE;
	ret->http_rule = verdict ? verdict->http_rule : IDM_NONE;
	ret->at = verdict ? verdict->at : IDM_AT_NONE;
	ret->auth = verdict ? verdict->auth : 0;
	ret->drop_reason = judged->drop_reason;
	ret->verdict = !judged->allowed ? IDM_DROPPED : judged->audit ? IDM_AUDIT : IDM_FORWARDED;
	ret->error = judged->error;
	ret->direction = judged->direction;
	ret->http = checker->request.has_http;
}

// Without room for what we wanted to say, say no.
static bool write_response(struct idm_checker *checker, const struct idm_snapshot *snapshot, char *room, size_t size,
			   struct idm_check_result *ret)
{
	struct wire_writer writer = { (uint8_t *)room, (uint8_t *)room + size, false };

	respond(&writer, snapshot, &checker->request, &checker->judged, ret->decision_id);
	ret->offset = (char *)writer.start - room;
	ret->size = size - ret->offset;
	return !writer.failed;
}

static void deny_only(struct idm_checker *checker, uint32_t error, uint32_t drop_reason)
{
	memset(&checker->judged, 0, offsetof(struct judged, verdicts));
	checker->judged.error = error;
	checker->judged.drop_reason = drop_reason;
}

int idm_check(struct idm_checker *checker, const struct idm_check_options *options, const char *request,
	      size_t size, char *room, size_t room_size, struct idm_check_result *ret)
{
	const struct idm_snapshot *snapshot = idm_reader_enter(checker->reader);

	make_id(checker, ret->decision_id);
	if (request_read((struct idm_bytes){ request, size }, &checker->request)) {
		checker->request.http.header_count = 0;
		deny_only(checker, IDM_CHECK_MALFORMED, IDM_DROP_POLICY_DENIED);
	} else {
		judge(snapshot, options, &checker->request, &checker->names, &checker->judged);
	}
	if (!write_response(checker, snapshot, room, room_size, ret)) {
		deny_only(checker, IDM_CHECK_TOO_LARGE, IDM_DROP_POLICY_DENIED);
		write_response(checker, NULL, room, room_size, ret);
	}
	report(checker, snapshot, ret);
	idm_reader_leave(checker->reader);
	return ret->error ? -EINVAL : 0;
}
