// SPDX-License-Identifier: Apache-2.0
// The module's parts that need no Envoy: configuration and addresses, under sanitizers, also with broken input.
//
// No #undef of NDEBUG tricks: every check prints its line and ends the program.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "door.h"
#include "json.h"

#define CHECK(condition)                                                      \
	do {                                                                  \
		if (!(condition)) {                                           \
			fprintf(stderr, "%d: %s\n", __LINE__, #condition);    \
			exit(1);                                              \
		}                                                             \
	} while (0)
#define TEXT(literal) ((struct idm_bytes){literal, sizeof(literal) - 1})

static void test_addresses_are_read_strictly(void)
{
	static const char *const bad[] = {"",      "1.2.3",   "1.2.3.4:",	 "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:8x",
					  "[::1",  "[::1]x",  "[::1]:",	 "::1:99999", "01.2.3.4.5",    "a",
					  "1.2.3.4 ", " 1.2.3.4", "[1.2.3.4]:80:", "::g"};
	struct address address;
	char text[ADDRESS_TEXT_MAX];

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(!address_parse((struct idm_bytes){bad[i], strlen(bad[i])}, &address) || address.port == 0);
	CHECK(address_parse(TEXT("10.0.0.1:80"), &address) && address.family == 4 && address.port == 80);
	CHECK(address_parse(TEXT("[fd00::1]:65535"), &address) && address.family == 6 && address.port == 65535);
	CHECK(address_parse(TEXT("fd00::1"), &address) && address.family == 6 && !address.port);
	CHECK(address_parse(TEXT("::ffff:10.0.0.1"), &address) && address.family == 4);
	address_format(&address, text);
	CHECK(!strcmp(text, "10.0.0.1"));
	CHECK(!address_parse((struct idm_bytes){"1.2.3.4\0", 8}, &address));
}

static void test_networks_contain_what_their_bits_say(void)
{
	static const char *const bad[] = {"10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "::/129", "10.0.0.0:1/8"};
	struct network network;
	struct address in, out;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(!network_parse(bad[i], &network));
	CHECK(network_parse("10.1.128.0/17", &network));
	CHECK(address_parse(TEXT("10.1.255.255"), &in) && network_contains(&network, &in));
	CHECK(address_parse(TEXT("10.1.127.255"), &out) && !network_contains(&network, &out));
	CHECK(network_parse("0.0.0.0/0", &network) && network_contains(&network, &in));
	CHECK(address_parse(TEXT("::1"), &out) && !network_contains(&network, &out));
	CHECK(network_parse("::1", &network) && network_contains(&network, &out));
	CHECK(network_parse("fd00::/9", &network) && !network_contains(&network, &out));
}

static bool door(const char *config, bool upstream)
{
	struct idm_error why;
	struct door made;
	bool good = door_init(&made, (struct idm_bytes){config, strlen(config)}, upstream, &why);

	CHECK(good || why.message[0]);
	door_deinit(&made);
	return good;
}

static void test_doors_are_read_strictly(void)
{
	static const char *const good[] = {
		"", "{}", " { } ", "{\"direction\":\"both\"}", "{\"destination\":\"a/b:1\",\"port\":2}",
		"{\"trust_domain\":\"td.test\",\"require\":[\"certificate\",\"address\"],\"address\":\"evidence\"}",
		"{\"trust_domain\":\"td.test\",\"address\":\"ignored\"}", "{\"require\":[]}", "{\"require\":[\"datapath\"]}",
		"{\"body\":\"\\u00e9\\n\\\"\\\\\\/\"}", "{\"destination\":\"[::1]:80\"}", "{\"metadata\":\"none\"}",
	};
	static const char *const bad[] = {
		"{", "[]", "null", "{}x", "{\"a\":1}", "{\"port\":-1}", "{\"port\":1.5}", "{\"port\":1e3}",
		"{\"port\":99999999999999999999}", "{\"body\":\"\\ud800\"}", "{\"body\":\"\\u0000\"}", "{\"body\":\"a}",
		"{\"body\":\"\\x\"}", "{\"body\":\"a\",\"body\":\"b\"}", "{\"body\":[]}", "{\"body\" \"a\"}", "{\"body\":\"\n\"}",
		"{\"require\":[\"certificate\"]}", "{\"address\":\"ignored\"}", "{\"address\":\"maybe\"}", "{\"require\":[\"faith\"]}",
		"{\"trust_domain\":\"TD\"}", "{\"trust_domain\":\"td/x\"}", "{\"require\":\"address\"}",
		"{\"trust_domain\":\"td\",\"address\":\"ignored\",\"require\":[\"address\"]}",
		"{,}", "{\"port\":1,}", "{\"direction\":\"up\"}", "{\"destination\":\"\"}", "{\"destination\":\"a/b:\"}",
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		CHECK(door(good[i], false));
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(!door(bad[i], false));
	CHECK(!door("{\"destination\":\"local\"}", true));
}

static void test_connections_survive_their_way_through_filter_state(void)
{
	struct connection sent = {.magic = CONNECTION_MAGIC, .sni_known = 1, .sni_size = 3, .sni = "abc"}, got;
	struct idm_bytes bytes = connection_bytes(&sent);

	CHECK(connection_read(bytes, &got) && got.sni_size == 3 && !memcmp(got.sni, "abc", 3));
	for (size_t size = 0; size < bytes.size; size++)
		CHECK(!connection_read((struct idm_bytes){bytes.ptr, size}, &got));
	sent.magic++;
	CHECK(!connection_read(connection_bytes(&sent), &got));
	sent.magic--;
	sent.sni_size = 4;
	CHECK(!connection_read(bytes, &got));
}

// Whatever stands in a configuration: an answer, and no byte read outside of it.
static void test_broken_configurations_are_only_refused(void)
{
	static const char start[] = "{\"direction\":\"both\",\"destination\":\"10.0.0.1:80\",\"body\":\"\\u00e9\\n\",\"port\":8}";
	static const char odd[] = "{}[]\":,\\u0019 \n\0\xff";
	unsigned int state = 1;

	for (int round = 0; round < 200000; round++) {
		size_t size = sizeof(start) - 1;
		char *text = malloc(size);

		memcpy(text, start, size);
		for (int edits = round % 4; edits >= 0; edits--) {
			state = state * 1103515245u + 12345u;
			text[(state >> 8) % size] = odd[(state >> 20) % sizeof(odd)];
		}
		size -= (state >> 4) % 8 ? 0 : (state >> 12) % size;
		struct idm_error why;
		struct door made;

		door_init(&made, (struct idm_bytes){text, size}, false, &why);
		door_deinit(&made);
		free(text);
	}
}

int main(void)
{
	test_addresses_are_read_strictly();
	test_networks_contain_what_their_bits_say();
	test_doors_are_read_strictly();
	test_connections_survive_their_way_through_filter_state();
	test_broken_configurations_are_only_refused();
	return 0;
}
