// SPDX-License-Identifier: Apache-2.0
// A strict reader of flat JSON objects. It knows no nesting, so it cannot be made to recurse.

#include "json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIST_MAX 1024

struct cursor {
	const char *at;
	const char *end;
	struct idm_error *why;
};

static bool fail(struct cursor *cursor, const char *what, const char *name)
{
	snprintf(cursor->why->message, sizeof(cursor->why->message), "%s%s%s", what, name ? ": " : "",
		 name ? name : "");
	return false;
}

static void skip_space(struct cursor *cursor)
{
	while (cursor->at < cursor->end && strchr(" \t\r\n", *cursor->at) && *cursor->at)
		cursor->at++;
}

static bool take(struct cursor *cursor, char wanted)
{
	skip_space(cursor);
	if (cursor->at == cursor->end || *cursor->at != wanted)
		return false;
	cursor->at++;
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// \uXXXX of the basic plane to UTF-8; no configuration of ours needs surrogates or NUL.
static size_t take_unicode(struct cursor *cursor, char *out)
{
	unsigned int code = 0;

	if (cursor->end - cursor->at < 4)
		return 0;
	for (int i = 0; i < 4; i++) {
		int digit = hex_digit(*cursor->at++);

		if (digit < 0)
			return 0;
		code = code << 4 | (unsigned int)digit;
	}
	if (!code || (code >= 0xd800 && code < 0xe000))
		return 0;
	if (code < 0x80) {
		out[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		out[0] = (char)(0xc0 | code >> 6);
		out[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	out[0] = (char)(0xe0 | code >> 12);
	out[1] = (char)(0x80 | (code >> 6 & 0x3f));
	out[2] = (char)(0x80 | (code & 0x3f));
	return 3;
}

static size_t take_escape(struct cursor *cursor, char *out)
{
	static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	const char *found;

	if (cursor->at == cursor->end)
		return 0;
	if (*cursor->at == 'u') {
		cursor->at++;
		return take_unicode(cursor, out);
	}
	found = *cursor->at ? strchr(plain, *cursor->at) : NULL;
	if (!found)
		return 0;
	cursor->at++;
	*out = meant[found - plain];
	return 1;
}

// A string into fresh memory; escapes only shrink it.
static char *take_text(struct cursor *cursor)
{
	char *text, *out;

	if (!take(cursor, '"'))
		return NULL;
	text = out = malloc((size_t)(cursor->end - cursor->at) + 1);
	while (text && cursor->at < cursor->end) {
		unsigned char c = (unsigned char)*cursor->at++;
		size_t size = 1;

		if (c == '"') {
			*out = 0;
			return text;
		}
		if (c < 0x20)
			break;
		if (c == '\\')
			size = take_escape(cursor, out);
		else
			*out = (char)c;
		if (!size)
			break;
		out += size;
	}
	free(text);
	return NULL;
}

static bool take_word(struct cursor *cursor, const char *word)
{
	size_t size = strlen(word);

	skip_space(cursor);
	if ((size_t)(cursor->end - cursor->at) < size || memcmp(cursor->at, word, size))
		return false;
	cursor->at += size;
	return true;
}

static bool take_number(struct cursor *cursor, uint64_t *ret)
{
	uint64_t number = 0;
	size_t digits = 0;

	skip_space(cursor);
	for (; cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9'; cursor->at++) {
		number = number * 10 + (uint64_t)(*cursor->at - '0');
		if (++digits > 15)
			return false;
	}
	*ret = number;
	return digits && (cursor->at == cursor->end || !strchr(".eE", *cursor->at));
}

static bool take_list(struct cursor *cursor, struct text_list *list)
{
	if (!take(cursor, '['))
		return false;
	list->items = calloc(LIST_MAX, sizeof(*list->items));
	if (!list->items)
		return false;
	if (take(cursor, ']'))
		return true;
	do {
		char *item = list->count < LIST_MAX ? take_text(cursor) : NULL;

		if (!item)
			return false;
		list->items[list->count++] = item;
	} while (take(cursor, ','));
	return take(cursor, ']');
}

static bool take_flag(struct cursor *cursor, bool *ret)
{
	*ret = take_word(cursor, "true");
	return *ret || take_word(cursor, "false");
}

static bool take_value(struct cursor *cursor, const struct json_field *field)
{
	switch (field->type) {
	case JSON_TEXT: {
		char *text = take_text(cursor);

		if (text)
			*(char **)field->out = text;
		return text || fail(cursor, "not a string", field->name);
	}
	case JSON_FLAG:
		return take_flag(cursor, field->out) || fail(cursor, "neither true nor false", field->name);
	case JSON_NUMBER:
		return take_number(cursor, field->out) || fail(cursor, "not a whole number", field->name);
	case JSON_LIST:
		return take_list(cursor, field->out) || fail(cursor, "not a list of strings", field->name);
	}
	return false;
}

static bool take_member(struct cursor *cursor, const struct json_field *fields, size_t field_count, uint64_t *seen)
{
	char *name = take_text(cursor);
	size_t i = 0;
	bool good;

	if (!name)
		return fail(cursor, "not a JSON object", NULL);
	while (i < field_count && strcmp(fields[i].name, name))
		i++;
	if (i == field_count)
		good = fail(cursor, "unknown key", name);
	else if (*seen >> i & 1)
		good = fail(cursor, "repeated key", name);
	else if (!take(cursor, ':'))
		good = fail(cursor, "no value", name);
	else
		good = take_value(cursor, &fields[i]);
	*seen |= i < field_count ? UINT64_C(1) << i : 0;
	free(name);
	return good;
}

bool json_read(struct idm_bytes text, const struct json_field *fields, size_t field_count, struct idm_error *why)
{
	struct cursor cursor = {text.ptr, text.ptr + text.size, why};
	uint64_t seen = 0;

	why->message[0] = 0;
	if (!text.size)
		return true;
	if (!take(&cursor, '{'))
		return fail(&cursor, "not a JSON object", NULL);
	if (!take(&cursor, '}')) {
		do {
			if (!take_member(&cursor, fields, field_count, &seen))
				return false;
		} while (take(&cursor, ','));
		if (!take(&cursor, '}'))
			return fail(&cursor, "not a JSON object", NULL);
	}
	skip_space(&cursor);
	return cursor.at == cursor.end || fail(&cursor, "something follows the object", NULL);
}

void text_list_deinit(struct text_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->items[i]);
	free(list->items);
	*list = (struct text_list){0};
}
