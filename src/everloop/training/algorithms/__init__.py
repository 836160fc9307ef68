"""The algorithms that AutoTrain can try, and the protocol that they implement."""
