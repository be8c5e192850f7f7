"""Process and greenlet machinery: log, counters, mailbox, timer wheel, bounded drains. Knows no L2TP, PPP or RADIUS."""
