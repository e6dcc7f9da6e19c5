/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Canonical paths. The steps and their order are Envoy's (conn_manager_utility.cc: unescape slashes, canonicalize,
 * merge slashes), in one pass over the bytes and one over the slashes. The character classes are those of its URL
 * library; checked against Envoy 1.38 to 1.40 in tests/envoy.
 */
#include "path.h"

#include <errno.h>

enum class {
	KEEP = 0,
	ENCODE = 1, // written as %XX
	REFUSE = 2,
	SLASH = 3, // backslash
	PERCENT = 4,
	UNRESERVED = 5, // kept, and decoded where it is escaped
};

static const uint8_t classes[256] = {
	[0x00 ... 0x1f] = REFUSE, [0x7f ... 0xff] = REFUSE, ['#'] = REFUSE, // a fragment never reaches a server
	[' '] = ENCODE, ['"'] = ENCODE, ['<'] = ENCODE, ['>'] = ENCODE, ['^'] = ENCODE, ['`'] = ENCODE,
	['{'] = ENCODE, ['|'] = ENCODE, ['}'] = ENCODE,
	['\\'] = SLASH, ['%'] = PERCENT,
	['0' ... '9'] = UNRESERVED, ['A' ... 'Z'] = UNRESERVED, ['a' ... 'z'] = UNRESERVED,
	['-'] = UNRESERVED, ['.'] = UNRESERVED, ['_'] = UNRESERVED, ['~'] = UNRESERVED,
};

/* The output so far; it always starts with a slash. */
struct rewriter {
	char *out;
	size_t room;
	size_t size;
	size_t segment; // where the current segment starts
};

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = idm_lower(c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int put(struct rewriter *rewriter, char c)
{
	if (rewriter->size == rewriter->room)
		return -EINVAL;
	rewriter->out[rewriter->size++] = c;
	return 0;
}

static int put_escaped(struct rewriter *rewriter, unsigned char c)
{
	static const char digits[] = "0123456789ABCDEF";

	return put(rewriter, '%') || put(rewriter, digits[c >> 4]) || put(rewriter, digits[c & 15]) ? -EINVAL : 0;
}

// Drop the current segment and the one before it; above the root is the root.
static void climb(struct rewriter *rewriter)
{
	size_t at = rewriter->segment - 1;

	while (at && rewriter->out[at - 1] != '/')
		at--;
	rewriter->size = rewriter->segment = at ? at : 1;
}

// The current segment is complete. *dropped: it was a dot segment, and its slash goes with it.
static int end_segment(struct rewriter *rewriter, bool *dropped)
{
	const char *segment = rewriter->out + rewriter->segment;
	size_t size = rewriter->size - rewriter->segment, dots = 0;

	while (dots < size && dots < 3 && segment[dots] == '.')
		dots++;
	*dropped = false;
	if (dots != 1 && dots != 2)
		return 0;
	if (size > dots)
		return segment[dots] == ';' ? -EINVAL : 0;
	*dropped = true;
	if (dots == 1)
		rewriter->size = rewriter->segment;
	else
		climb(rewriter);
	return 0;
}

static int put_slash(struct rewriter *rewriter)
{
	bool dropped;

	if (end_segment(rewriter, &dropped))
		return -EINVAL;
	if (dropped)
		return 0;
	if (put(rewriter, '/'))
		return -EINVAL;
	rewriter->segment = rewriter->size;
	return 0;
}

// text starts with '%'. Escaped slashes are slashes, unreserved characters are themselves, the rest stays escaped.
static int put_escape(struct rewriter *rewriter, const char *text, size_t size)
{
	int high = size > 1 ? hex_value(text[1]) : -1, low = size > 2 ? hex_value(text[2]) : -1;
	int value;

	if (high < 0 || low < 0)
		return -EINVAL;
	value = high * 16 + low;
	if (!value)
		return -EINVAL;
	if (value == '/' || value == '\\')
		return put_slash(rewriter);
	if (classes[value] == UNRESERVED)
		return put(rewriter, (char)value);
	return put(rewriter, '%') || put(rewriter, text[1]) || put(rewriter, text[2]) ? -EINVAL : 0;
}

static int rewrite_segments(struct rewriter *rewriter, struct idm_bytes path)
{
	bool dropped;

	for (size_t i = 1; i < path.size; i++) {
		unsigned char c = (unsigned char)path.ptr[i];
		int r;

		if (c == '/' || classes[c] == SLASH) {
			r = put_slash(rewriter);
		} else if (classes[c] == PERCENT) {
			r = put_escape(rewriter, path.ptr + i, path.size - i);
			i += 2;
		} else if (classes[c] == ENCODE) {
			r = put_escaped(rewriter, c);
		} else {
			r = classes[c] == REFUSE ? -EINVAL : put(rewriter, (char)c);
		}
		if (r)
			return r;
	}
	return end_segment(rewriter, &dropped);
}

// After dot segments, because "//.." climbs out of the empty segment only (Envoy merges last too).
static void merge_slashes(struct rewriter *rewriter)
{
	size_t size = 1;

	for (size_t i = 1; i < rewriter->size; i++)
		if (rewriter->out[i] != '/' || rewriter->out[size - 1] != '/')
			rewriter->out[size++] = rewriter->out[i];
	// Slashes alone become two: Envoy joins nothing between a leading and a trailing one.
	if (size == 1 && rewriter->size > 1)
		size = 2;
	rewriter->size = size;
}

static bool query_is_sound(struct idm_bytes query)
{
	for (size_t i = 0; i < query.size; i++) {
		unsigned char c = (unsigned char)query.ptr[i];

		if (c < 0x20 || c == 0x7f || c == '#')
			return false;
	}
	return true;
}

static size_t path_part(struct idm_bytes path)
{
	const char *mark = path.size ? memchr(path.ptr, '?', path.size) : NULL;

	return mark ? (size_t)(mark - path.ptr) : path.size;
}

int idm_path_rewrite(struct idm_bytes path, char *out, size_t room, size_t *out_size)
{
	struct idm_bytes part = {.ptr = path.ptr, .size = path_part(path)};
	struct idm_bytes query = {.ptr = path.ptr + part.size, .size = path.size - part.size};
	struct rewriter rewriter = {.out = out, .room = room, .size = 1, .segment = 1};
	bool same;

	if (!part.size || part.ptr[0] != '/' || !room || !query_is_sound(query))
		return -EINVAL;
	out[0] = '/';
	if (rewrite_segments(&rewriter, part))
		return -EINVAL;
	merge_slashes(&rewriter);
	if (query.size > room - rewriter.size)
		return -EINVAL;
	same = rewriter.size == part.size && memcmp(out, part.ptr, part.size) == 0;
	memcpy(out + rewriter.size, query.ptr, query.size);
	*out_size = rewriter.size + query.size;
	return same;
}

int idm_path_canonicalize(struct idm_bytes path, char *out, size_t *out_size)
{
	return path.size > SIZE_MAX / 3 ? -EINVAL : idm_path_rewrite(path, out, 3 * path.size, out_size);
}

bool idm_path_is_plain(struct idm_bytes path)
{
	size_t part = path_part(path);
	char previous = 0;

	if (!part || path.ptr[0] != '/')
		return false;
	for (size_t i = 0; i < part; i++) {
		char c = path.ptr[i];
		uint8_t class = classes[(unsigned char)c];

		if ((class != KEEP && class != UNRESERVED) || (previous == '/' && (c == '/' || c == '.')))
			return false;
		previous = c;
	}
	return query_is_sound((struct idm_bytes){.ptr = path.ptr + part, .size = path.size - part});
}

// Kept out of line for its buffer.
__attribute__((noinline)) bool idm_path_is_canonical(struct idm_bytes path)
{
	char out[IDM_PATH_MAX];
	size_t size;

	return path.size <= sizeof(out) && idm_path_rewrite(path, out, sizeof(out), &size) == 1;
}
