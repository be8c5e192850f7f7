/*
 * MD5 (RFC 1321) and HMAC-MD5 (RFC 2104). The table of sines is computed, as the RFC defines it.
 */
#include "wire.h"

#include <math.h>
#include <string.h>

static uint32_t sines[64];

static uint32_t rotate(uint32_t value, unsigned bits)
{
    return value << bits | value >> (32 - bits);
}

static void add_block(uint32_t state[4], const uint8_t *block)
{
    static const unsigned shift[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    uint32_t word[16], a = state[0], b = state[1], c = state[2], d = state[3];
    for (int i = 0; i < 16; i++)
        word[i] = block[4 * i] | block[4 * i + 1] << 8 | block[4 * i + 2] << 16 | (uint32_t)block[4 * i + 3] << 24;
    for (int i = 0; i < 64; i++) {
        uint32_t mixed;
        int which;
        switch (i / 16) {
        case 0: mixed = (b & c) | (~b & d); which = i; break;
        case 1: mixed = (b & d) | (c & ~d); which = 5 * i + 1; break;
        case 2: mixed = b ^ c ^ d; which = 3 * i + 5; break;
        default: mixed = c ^ (b | ~d); which = 7 * i; break;
        }
        uint32_t next = b + rotate(a + mixed + word[which & 15] + sines[i], shift[i / 16][i & 3]);
        a = d;
        d = c;
        c = b;
        b = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

void md5_begin(struct md5 *md5)
{
    if (!sines[0])
        for (int i = 0; i < 64; i++)
            sines[i] = (uint32_t)(4294967296.0 * fabs(sin(i + 1)));
    *md5 = (struct md5){.state = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}};
}

void md5_add(struct md5 *md5, const void *data, size_t octets)
{
    const uint8_t *from = data;
    while (octets) {
        size_t used = md5->octets & 63, part = 64 - used < octets ? 64 - used : octets;
        memcpy(md5->block + used, from, part);
        md5->octets += part;
        from += part;
        octets -= part;
        if (used + part == 64)
            add_block(md5->state, md5->block);
    }
}

void md5_end(struct md5 *md5, uint8_t digest[16])
{
    static const uint8_t padding[64] = {0x80};
    uint64_t bits = md5->octets * 8;
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = bits >> (8 * i);
    md5_add(md5, padding, 1 + (119 - (md5->octets & 63)) % 64);
    md5_add(md5, length, 8);
    for (int i = 0; i < 16; i++)
        digest[i] = md5->state[i / 4] >> (8 * (i & 3));
}

void hmac_md5(const char *key, const uint8_t *data, size_t octets, uint8_t digest[16])
{
    uint8_t pad[64] = {0};
    size_t length = strlen(key);
    struct md5 md5;
    memcpy(pad, key, length < 64 ? length : 64);
    for (int i = 0; i < 64; i++)
        pad[i] ^= 0x36;
    md5_begin(&md5);
    md5_add(&md5, pad, 64);
    md5_add(&md5, data, octets);
    md5_end(&md5, digest);
    for (int i = 0; i < 64; i++)
        pad[i] ^= 0x36 ^ 0x5c;
    md5_begin(&md5);
    md5_add(&md5, pad, 64);
    md5_add(&md5, digest, 16);
    md5_end(&md5, digest);
}
