// SPDX-License-Identifier: Apache-2.0
// One request from bytes to bytes: read, judge, respond. Any failure on the way is a denial.
#include <errno.h>

#include "checker.h"
#include "record.h"
#include "respond.h"

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

int idm_check(struct idm_checker *checker, const struct idm_check_options *options, const char *request,
	      size_t size, char *room, size_t room_size, struct idm_check_result *ret)
{
	const struct idm_snapshot *snapshot = idm_reader_enter(checker->reader);

	checker_make_id(checker, ret->decision_id);
	if (request_read((struct idm_bytes){ request, size }, &checker->request)) {
		checker->request.http.header_count = 0;
		checker_deny(checker, IDM_CHECK_MALFORMED, IDM_DROP_POLICY_DENIED);
	} else {
		checker_judge(checker, snapshot, options);
	}
	if (!write_response(checker, snapshot, room, room_size, ret)) {
		checker_deny(checker, IDM_CHECK_TOO_LARGE, IDM_DROP_POLICY_DENIED);
		write_response(checker, NULL, room, room_size, ret);
	}
	checker_report(checker, snapshot, ret);
	record_verdict(checker, snapshot, IDM_DOOR_EXT_AUTHZ, 0);
	idm_reader_leave(checker->reader);
	return ret->error ? -EINVAL : 0;
}
