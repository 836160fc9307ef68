"""What AutoTrain can try, one file each, and the contract that they share."""
