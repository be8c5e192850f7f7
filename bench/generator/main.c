/*
 * loadgen: what a benchmark of an L2TP network server needs around the server.
 *
 *   loadgen lac --from ADDRESS ... --lns ADDRESS [OPTION VALUE ...]   LACs with their subscribers
 *   loadgen net ADDRESS SESSIONS                                      the network beyond the server
 *   loadgen plain PEER FIRST SESSIONS                                 subscribers without L2TP: plain forwarding
 *   loadgen radius ADDRESS PORT SECRET [FIRST]                        a RADIUS server that accepts every user
 *
 * Options of `lac`: --from (repeated: several LACs), --port (1701), --lns, --peer (address of `net`), --tunnels (1),
 * --sessions (1000: room for), --secret (of the tunnels), --name, --users (prefix of the names), --password.
 *
 * Each mode prints an event a line as JSON, `ready` first, and executes commands, one a line, from standard input:
 *
 *   lac     login COUNT WINDOW RATE   bring up COUNT more sessions, WINDOW at a time, RATE a second (0: no limit)
 *           hangup FIRST COUNT        end sessions with a CDN
 *           list FILE                 write "NUMBER ADDRESS PEER-TUNNEL PEER-SESSION" for each session online
 *           stats, forget             print the state; forget the acknowledgement times so far
 *   net     sessions FILE             read such a list
 *   lac, net, plain
 *           send RUN OCTETS SECONDS RATE FIRST COUNT   probes over sessions in turn (RATE 0: as fast as possible)
 *           ping RUN OCTETS SECONDS RATE FIRST COUNT   the same, each answered by `net`; beside `send`
 *           expect RUN, counts        begin to count probes of a run; print what has arrived
 *   radius  stats
 *   all     quit                      (`lac` closes its tunnels; the end of the input ends it without)
 */
#include "probe.h"

#include <string.h>

int lac_main(int count, char **words);
int net_main(int count, char **words, bool is_plain);
int radius_main(int count, char **words);

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "lac"))
        return lac_main(argc - 2, argv + 2);
    if (!strcmp(mode, "net") || !strcmp(mode, "plain"))
        return net_main(argc - 2, argv + 2, !strcmp(mode, "plain"));
    if (!strcmp(mode, "radius"))
        return radius_main(argc - 2, argv + 2);
    refuse("lac, net, plain or radius; see the head of main.c");
}
