kvferry_test(parcel_layout_test SOURCES parcel_layout_test.cc parcel_ranks_test.cc
             LINKS kvferry_layout kvferry_test_kv WHOLE ONE_THREAD)
kvferry_test(parcel_reshard_test SOURCES parcel_reshard_test.cc LINKS kvferry_layout kvferry_test_kv WHOLE ONE_THREAD
             TIMEOUT 300)
kvferry_test(parcel_reshard_speed_test SOURCES parcel_reshard_speed_test.cc LINKS kvferry_layout WHOLE ONE_THREAD
             TIMEOUT 120)
# The protocol on virtual time, with the simulator's wires.
kvferry_test(parcel_protocol_test SOURCES parcel_protocol_test.cc parcel_frames_test.cc parcel_reconnect_test.cc
             LINKS kvferry_virtual WHOLE ONE_THREAD TIMEOUT 120)
