// SPDX-License-Identifier: Apache-2.0
// One stream: which message may come when, and what each is answered.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checker.h"
#include "proc_request.h"
#include "proc_respond.h"
#include "record.h"

enum { GRPC_OK = 0, GRPC_INVALID_ARGUMENT = 3, GRPC_PERMISSION_DENIED = 7, GRPC_FAILED_PRECONDITION = 9 };

enum stream_flags {
	JUDGED = 1,
	PASSED = 2, // let through, or only observed
	REQUEST_ENDED = 4, // its trailers came
	RESPONSE_BEGAN = 8, // its headers came
	RESPONSE_ENDED = 16, // its trailers came
	RECORDED = 32, // the response's record is written
};

struct idm_stream {
	struct idm_stream *next; // while it is free
	uint32_t flags;
	uint32_t code;
	struct recorded recorded;
};

static const char *const reasons[] = {
	[GRPC_OK] = "",
	[GRPC_INVALID_ARGUMENT] = "malformed ProcessingRequest",
	[GRPC_PERMISSION_DENIED] = "denied",
	[GRPC_FAILED_PRECONDITION] = "message out of order, or a body mode that wants bodies back",
};

const char *idm_process_reason(const struct idm_process_result *result)
{
	const char *reason = result->status < sizeof(reasons) / sizeof(*reasons) ? reasons[result->status] : NULL;

	return reason ? reason : "";
}

struct idm_stream *idm_stream_open(struct idm_checker *checker)
{
	struct idm_stream *stream = checker->free_streams;

	if (!stream)
		return calloc(1, sizeof(*stream));
	checker->free_streams = stream->next;
	stream->next = NULL;
	stream->flags = stream->code = 0;
	return stream;
}

static void record_end(struct idm_checker *checker, struct idm_stream *stream, uint32_t flags)
{
	if (!(stream->flags & PASSED) || stream->flags & RECORDED)
		return;
	stream->flags |= RECORDED;
	record_response(checker, &stream->recorded, stream->code, flags);
}

void idm_stream_close(struct idm_checker *checker, struct idm_stream *stream)
{
	record_end(checker, stream, 0);
	stream->next = checker->free_streams;
	checker->free_streams = stream;
}

void idm_streams_free(struct idm_checker *checker)
{
	struct idm_stream *stream;

	while ((stream = checker->free_streams)) {
		checker->free_streams = stream->next;
		free(stream);
	}
}

int idm_stream_is_judged(const struct idm_stream *stream)
{
	return !!(stream->flags & PASSED);
}

static void end(struct idm_process_result *ret, uint32_t status)
{
	ret->ends = 1;
	ret->status = (uint8_t)status;
}

// --- the verdict ---

static bool write_verdict(struct idm_checker *checker, const struct idm_snapshot *snapshot, char *room, size_t size,
			  struct idm_check_result *ret)
{
	struct wire_writer writer = { (uint8_t *)room, (uint8_t *)room + size, false };

	proc_respond(&writer, snapshot, &checker->request, &checker->judged, ret->decision_id);
	ret->offset = (uint32_t)((char *)writer.start - room);
	ret->size = (uint32_t)(size - ret->offset);
	return !writer.failed;
}

static void judge_message(struct idm_checker *checker, const struct idm_snapshot *snapshot,
			  const struct idm_check_options *options, const struct proc_message *message)
{
	if (proc_read_request(message, options->source_address, &checker->request)) {
		checker->request.http.header_count = 0;
		checker_deny(checker, IDM_CHECK_MALFORMED, IDM_DROP_POLICY_DENIED);
	} else {
		checker_judge(checker, snapshot, options);
	}
}

// A denial ends the stream with an error behind its answer: Envoy has closed it by then, and one that disregarded the
// answer could not take the stream's end for leave to go on.
static void request_headers(struct idm_checker *checker, struct idm_stream *stream,
			    const struct idm_check_options *options, const struct proc_message *message, char *room,
			    size_t room_size, struct idm_process_result *ret)
{
	const struct idm_snapshot *snapshot = idm_reader_enter(checker->reader);
	uint32_t flags = message->observed ? IDM_RECORD_SHADOW : 0;

	checker_make_id(checker, ret->check.decision_id);
	judge_message(checker, snapshot, options, message);
	if (!message->observed && !write_verdict(checker, snapshot, room, room_size, &ret->check)) {
		checker_deny(checker, IDM_CHECK_TOO_LARGE, IDM_DROP_POLICY_DENIED);
		write_verdict(checker, NULL, room, room_size, &ret->check);
	}
	checker_report(checker, snapshot, &ret->check);
	record_verdict(checker, snapshot, IDM_DOOR_EXT_PROC, flags);
	record_keep(checker, snapshot, flags, &stream->recorded);
	idm_reader_leave(checker->reader);
	ret->judged = 1;
	stream->flags |= JUDGED;
	if (checker->judged.allowed || message->observed)
		stream->flags |= PASSED;
	else
		end(ret, GRPC_PERMISSION_DENIED);
}

// --- everything else ---

static bool in_order(const struct idm_stream *stream, uint32_t kind)
{
	if (kind == PROC_REQUEST_HEADERS)
		return !(stream->flags & JUDGED);
	if (!(stream->flags & PASSED))
		return false;
	switch (kind) {
	case PROC_REQUEST_BODY:
	case PROC_REQUEST_TRAILERS:
		return !(stream->flags & REQUEST_ENDED);
	case PROC_RESPONSE_HEADERS:
		return !(stream->flags & (RESPONSE_BEGAN | RESPONSE_ENDED));
	default: // the response's body and trailers
		return !(stream->flags & RESPONSE_ENDED);
	}
}

// Envoy answers some requests before it shows them to anybody: malformed ones, and paths that it wants spelled plainly.
static bool is_own_answer(const struct idm_stream *stream, const struct proc_message *message)
{
	return message->kind == PROC_RESPONSE_HEADERS && !(stream->flags & (JUDGED | RESPONSE_BEGAN)) &&
	       proc_is_own_answer(message);
}

// A response of gRPC is known when its trailers are.
static void note_response(struct idm_checker *checker, struct idm_stream *stream, const struct proc_response *response)
{
	uint32_t flags = 0;

	if (response->code)
		stream->code = response->code;
	if (response->has_grpc_status && stream->recorded.flags & IDM_RECORD_GRPC) {
		stream->code = response->grpc_status;
		flags = IDM_RECORD_GRPC_STATUS;
	}
	if (response->is_last || flags || !(stream->recorded.flags & IDM_RECORD_GRPC))
		record_end(checker, stream, flags);
}

static int pass_on(struct idm_checker *checker, struct idm_stream *stream, const struct proc_message *message)
{
	struct proc_response response;

	if (message->kind == PROC_REQUEST_TRAILERS)
		stream->flags |= REQUEST_ENDED;
	if (message->kind != PROC_RESPONSE_HEADERS && message->kind != PROC_RESPONSE_TRAILERS)
		return 0;
	stream->flags |= message->kind == PROC_RESPONSE_HEADERS ? RESPONSE_BEGAN : RESPONSE_ENDED;
	if (proc_read_response(message, &response))
		return -EINVAL;
	note_response(checker, stream, &response);
	return 0;
}

// Once the response is known nothing that comes concerns us: a download or a WebSocket costs no stream.
static void end_if_known(const struct idm_stream *stream, struct idm_process_result *ret)
{
	if (stream->flags & RECORDED)
		end(ret, GRPC_OK);
}

static void write_empty(const struct proc_message *message, char *room, size_t size, struct idm_check_result *ret)
{
	struct wire_writer writer = { (uint8_t *)room, (uint8_t *)room + size, false };

	proc_respond_empty(&writer, message->kind);
	ret->offset = (uint32_t)((char *)writer.start - room);
	ret->size = (uint32_t)(size - ret->offset);
}

int idm_process(struct idm_checker *checker, struct idm_stream *stream, const struct idm_check_options *options,
		const char *message, size_t size, char *room, size_t room_size, struct idm_process_result *ret)
{
	struct proc_message read;

	memset(ret, 0, sizeof(*ret));
	if (proc_read((struct idm_bytes){ message, size }, &read)) {
		end(ret, GRPC_INVALID_ARGUMENT);
		return -EINVAL;
	}
	ret->observed = read.observed;
	if (is_own_answer(stream, &read)) {
		stream->flags |= RESPONSE_BEGAN;
		if (!read.observed)
			write_empty(&read, room, room_size, &ret->check);
		return 0;
	}
	if ((read.streams_bodies && !read.observed) || !in_order(stream, read.kind)) {
		end(ret, GRPC_FAILED_PRECONDITION);
		return -EINVAL;
	}
	if (read.kind == PROC_REQUEST_HEADERS) {
		request_headers(checker, stream, options, &read, room, room_size, ret);
		return ret->check.error ? -EINVAL : 0;
	}
	if (pass_on(checker, stream, &read)) {
		end(ret, GRPC_INVALID_ARGUMENT);
		return -EINVAL;
	}
	if (!read.observed)
		write_empty(&read, room, room_size, &ret->check);
	end_if_known(stream, ret);
	return 0;
}
