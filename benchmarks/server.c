/* The cheapest WebSocket server there is: blocking, a thread per connection, answers built beforehand.
 *
 *   server                     plain, on any port of 127.0.0.1
 *   server cert.pem key.pem    TLS
 *
 * It prints its port. What it does is said by text messages below 126 bytes:
 *   push K N B   send K messages of N bytes, B of them with each write
 *   echo N       from now on, answer each longer message with one of N bytes; 0: swallow them
 *   anything     "ok"
 * Pings and closes are answered as they must be. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (1 << 16)
#define HEAD "{\"type\":\"response.output_audio.delta\",\"event_id\":\"event_1\",\"response_id\":\"resp_1\"," \
             "\"item_id\":\"item_1\",\"output_index\":0,\"content_index\":0,\"delta\":\""

static SSL_CTX *tls;
typedef struct { int fd; SSL *ssl; } Connection;

static long get(Connection *c, unsigned char *to, size_t size) {
    return c->ssl ? SSL_read(c->ssl, to, (int)size) : recv(c->fd, to, size, 0);
}

static int put(Connection *c, const unsigned char *from, size_t size) {
    while (size) {
        long done = c->ssl ? SSL_write(c->ssl, from, (int)size) : send(c->fd, from, size, MSG_NOSIGNAL);
        if (done <= 0) return 0;
        from += done; size -= (size_t)done;
    }
    return 1;
}

static size_t header(unsigned char *to, int opcode, size_t size) {
    to[0] = (unsigned char)(0x80 | opcode);
    if (size < 126) { to[1] = (unsigned char)size; return 2; }
    if (size < 65536) { to[1] = 126; to[2] = (unsigned char)(size >> 8); to[3] = (unsigned char)size; return 4; }
    to[1] = 127;
    for (int i = 0; i < 8; i++) to[2 + i] = (unsigned char)((unsigned long)size >> (56 - 8 * i));
    return 10;
}

/* `count` frames, each with an audio delta of `size` bytes of JSON. */
static unsigned char *frames(size_t size, size_t count, size_t *length) {
    unsigned char first[10];
    size_t before = header(first, 1, size), text = strlen(HEAD);
    unsigned char *all = malloc((before + size) * count);
    *length = before + size;
    for (size_t k = 0; k < count; k++) {
        unsigned char *p = all + k * *length;
        memcpy(p, first, before); p += before;
        if (size < text + 2) { memset(p, 'x', size); continue; }
        memset(p, 'A', size); memcpy(p, HEAD, text); memcpy(p + size - 2, "\"}", 2);
    }
    return all;
}

static int upgrade(Connection *c, unsigned char *buffer) {
    size_t size = 0;
    do {
        long got = get(c, buffer + size, BUFFER - 1 - size);
        if (got <= 0) return 0;
        size += (size_t)got; buffer[size] = 0;
    } while (!strstr((char *)buffer, "\r\n\r\n"));
    char *key = strcasestr((char *)buffer, "sec-websocket-key:"), text[128], answer[512];
    unsigned char digest[20], accept[40];
    if (!key) return 0;
    for (key += 18; *key == ' '; key++) ;
    snprintf(text, sizeof text, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)strcspn(key, "\r"), key);
    SHA1((unsigned char *)text, strlen(text), digest);
    EVP_EncodeBlock(accept, digest, 20);
    snprintf(answer, sizeof answer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
             "Sec-WebSocket-Accept: %s\r\nX-Request-Id: req_0123456789abcdef0123456789abcdef\r\n\r\n", accept);
    return put(c, (unsigned char *)answer, strlen(answer));
}

typedef struct { unsigned char *echo; size_t echo_size; } Task;

static int command(Connection *c, Task *task, const char *text) {
    size_t count, size, batch, length;
    if (sscanf(text, "push %zu %zu %zu", &count, &size, &batch) == 3) {
        unsigned char *all = frames(size, batch, &length);
        int fine = 1;
        for (size_t left = count; left && fine; ) {
            size_t now = left < batch ? left : batch;
            fine = put(c, all, length * now);
            left -= now;
        }
        free(all);
        return fine;
    }
    if (sscanf(text, "echo %zu", &size) == 1) {
        free(task->echo);
        task->echo = size ? frames(size, 1, &task->echo_size) : 0;
        return 1;
    }
    return put(c, (const unsigned char *)"\x81\x02ok", 4);
}

static void *serve(void *argument) {
    Connection connection = {(int)(long)argument, 0}, *c = &connection;
    unsigned char *buffer = malloc(BUFFER), out[140];
    Task task = {0, 0};
    size_t have = 0, skip = 0;
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, c->fd);
        if (SSL_accept(c->ssl) <= 0) goto end;
    }
    if (!upgrade(c, buffer)) goto end;
    for (;;) {
        long got = get(c, buffer + have, BUFFER - have);
        if (got <= 0) break;
        have += (size_t)got;
        size_t at = 0;
        for (;;) {
            if (skip) { /* the rest of a long message */
                size_t part = have - at < skip ? have - at : skip;
                at += part; skip -= part;
                if (skip) break;
                if (task.echo && !put(c, task.echo, task.echo_size)) goto end;
            }
            unsigned char *f = buffer + at;
            size_t left = have - at, size = left > 1 ? f[1] & 127 : 0;
            size_t before = 6 + (size == 126 ? 2 : size == 127 ? 8 : 0);
            if (left < before) break;
            if (size > 125) {
                size_t bytes = size == 126 ? 2 : 8;
                size = 0;
                for (size_t i = 0; i < bytes; i++) size = size << 8 | f[2 + i];
                at += before; skip = size;
                continue;
            }
            if (left < before + size) break;
            int opcode = f[0] & 15;
            for (size_t i = 0; i < size; i++) out[2 + i] = f[6 + i] ^ f[2 + i % 4];
            at += before + size;
            if (opcode >= 8) {
                header(out, opcode == 9 ? 10 : opcode, size);
                if (opcode != 10 && !put(c, out, 2 + size)) goto end;
                if (opcode == 8) goto end;
            } else {
                out[2 + size] = 0;
                if (!command(c, &task, (char *)out + 2)) goto end;
            }
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
    }
end:
    if (c->ssl) SSL_shutdown(c->ssl);
    shutdown(c->fd, SHUT_WR); /* and read to the end: closing over unread bytes would reset the connection */
    struct timeval patience = {2, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (recv(c->fd, buffer, BUFFER, 0) > 0) ;
    if (c->ssl) SSL_free(c->ssl);
    close(c->fd);
    free(buffer); free(task.echo);
    return 0;
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    if (count > 2) {
        tls = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_session_id_context(tls, (const unsigned char *)"b", 1);
        if (SSL_CTX_use_certificate_chain_file(tls, arguments[1]) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, arguments[2], SSL_FILETYPE_PEM) != 1) return 1;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, size) || listen(listener, 1024)) return 1;
    getsockname(listener, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port)); fflush(stdout);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 18);
    for (;;) {
        int fd = accept(listener, 0, 0);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, &attributes, serve, (void *)(long)fd)) close(fd);
    }
}
