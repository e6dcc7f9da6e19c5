// SPDX-License-Identifier: Apache-2.0
// What both doors do alike around a decision.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "checker.h"

struct idm_checker *idm_checker_create(struct idm_reader *reader)
{
	struct idm_checker *checker = calloc(1, sizeof(*checker));

	if (checker)
		checker->reader = reader;
	return checker;
}

void idm_checker_destroy(struct idm_checker *checker)
{
	if (!checker)
		return;
	idm_streams_free(checker);
	free(checker);
}

void idm_checker_record(struct idm_checker *checker, struct idm_ring *ring)
{
	checker->ring = ring;
}

// A decision id only names a decision: where the kernel has no random bytes left it is zero, not a failure.
void checker_make_id(struct idm_checker *checker, char ret[32])
{
	static const char digits[] = "0123456789abcdef";

	if (checker->random_left < 16) {
		if (getrandom(checker->random, sizeof(checker->random), 0) != sizeof(checker->random))
			memset(checker->random, 0, sizeof(checker->random));
		checker->random_left = sizeof(checker->random);
	}
	checker->random_left -= 16;
	memcpy(checker->id, checker->random + checker->random_left, sizeof(checker->id));
	for (int i = 0; i < 16; i++) {
		ret[2 * i] = digits[checker->id[i] >> 4];
		ret[2 * i + 1] = digits[checker->id[i] & 15];
	}
}

static uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void checker_judge(struct idm_checker *checker, const struct idm_snapshot *snapshot,
		   const struct idm_check_options *options)
{
	uint64_t started;

	if (!checker->ring) { // nobody wants to know how long it took
		judge(snapshot, options, &checker->request, &checker->names, &checker->judged);
		return;
	}
	started = monotonic_ns();
	judge(snapshot, options, &checker->request, &checker->names, &checker->judged);
	checker->judged_ns = monotonic_ns();
	checker->decision_ns = (uint32_t)(checker->judged_ns - started);
}

void checker_deny(struct idm_checker *checker, uint32_t error, uint32_t drop_reason)
{
	memset(&checker->judged, 0, offsetof(struct judged, verdicts));
	checker->judged.source.endpoint = checker->judged.destination.endpoint = IDM_NONE;
	checker->judged.error = error;
	checker->judged.drop_reason = drop_reason;
	checker->decision_ns = 0;
	if (checker->ring)
		checker->judged_ns = monotonic_ns();
}

void checker_report(const struct idm_checker *checker, const struct idm_snapshot *snapshot,
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
